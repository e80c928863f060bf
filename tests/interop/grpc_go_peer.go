// An echo server, or client, on the ALTS record protocol of gRPC's Go implementation.
//
//	grpc_go_peer --key-hex=HEX [--record-protocol=NAME] [--tell-records] echo PORT
//	grpc_go_peer --key-hex=HEX [--record-protocol=NAME] --writes=SIZE[,SIZE...] --bytes=BYTES client PORT
//
// As grpc_alts_echo and grpc_alts_client are on gRPC's C++. The server prints its address, sends back
// what comes, and does not end; told to, it prints which records came when a connection ends. The client sends BYTES bytes in writes of the sizes, taken in turn,
// ends its side, verifies that every byte came back and prints one JSON line with what was sent and
// which records came. It ends with status 1 when something was wrong.
//
// That package is internal to gRPC: grpc_go.cmake has the compiler see this file in its tree.
package main

import (
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"

	core "google.golang.org/grpc/credentials/alts/internal"
	"google.golang.org/grpc/credentials/alts/internal/conn"
)

const lengthFieldSize = 4

func fail(format string, values ...interface{}) {
	fmt.Fprintf(os.Stderr, "grpc_go_peer: "+format+"\n", values...)
	os.Exit(1)
}

// recordCounter finds the ends of records in what is received, by their length fields alone.
type recordCounter struct {
	net.Conn
	header  []byte
	left    uint32
	records uint64
	largest uint64 // whole, in bytes on the wire
}

func (c *recordCounter) Read(into []byte) (int, error) {
	n, err := c.Conn.Read(into)
	for wire := into[:n]; len(wire) > 0; {
		if len(c.header) < lengthFieldSize {
			c.header = append(c.header, wire[0])
			wire = wire[1:]
			if len(c.header) < lengthFieldSize {
				continue
			}
			c.left = binary.LittleEndian.Uint32(c.header)
			if whole := uint64(c.left) + lengthFieldSize; whole > c.largest {
				c.largest = whole
			}
		}
		run := uint32(len(wire))
		if run > c.left {
			run = c.left
		}
		wire = wire[run:]
		c.left -= run
		if c.left == 0 {
			c.records++
			c.header = c.header[:0]
		}
	}
	return n, err
}

func (c *recordCounter) betweenRecords() bool { return len(c.header) == 0 }

func patternAt(position uint64) byte { return byte(position*7 + position>>8) }

type peer struct {
	protocol    string
	key         []byte
	tellRecords bool
}

func (p *peer) seal(side core.Side, below net.Conn) net.Conn {
	sealed, err := conn.NewConn(below, side, p.protocol, p.key, nil)
	if err != nil {
		fail("%v", err)
	}
	return sealed
}

func (p *peer) echo(port int) {
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		fail("%v", err)
	}
	fmt.Printf("listening on %s\n", listener.Addr())
	for {
		accepted, err := listener.Accept()
		if err != nil {
			fail("%v", err)
		}
		go func() {
			defer accepted.Close()
			counter := &recordCounter{Conn: accepted}
			if p.tellRecords {
				defer func() {
					fmt.Printf("{\"records_received\": %d, \"largest_record\": %d}\n", counter.records, counter.largest)
				}()
			}
			sealed := p.seal(core.ServerSide, counter)
			bytes := make([]byte, 64*1024)
			for {
				n, err := sealed.Read(bytes)
				if err != nil {
					return
				}
				if _, err := sealed.Write(bytes[:n]); err != nil {
					return
				}
			}
		}()
	}
}

func (p *peer) send(sealed net.Conn, below *net.TCPConn, sizes []uint64, total uint64, done chan<- uint64) {
	writes, sent := uint64(0), uint64(0)
	for ; sent < total; writes++ {
		size := sizes[writes%uint64(len(sizes))]
		if size > total-sent {
			size = total - sent
		}
		bytes := make([]byte, size)
		for i := range bytes {
			bytes[i] = patternAt(sent + uint64(i))
		}
		if _, err := sealed.Write(bytes); err != nil {
			break // the reader tells how the peer ended
		}
		sent += size
	}
	below.CloseWrite()
	done <- writes
}

func (p *peer) client(port int, sizes []uint64, total uint64) {
	below, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		fail("%v", err)
	}
	counter := &recordCounter{Conn: below}
	sealed := p.seal(core.ClientSide, counter)
	done := make(chan uint64, 1)
	go p.send(sealed, below.(*net.TCPConn), sizes, total, done)
	received := uint64(0)
	bytes := make([]byte, 64*1024)
	for {
		n, err := sealed.Read(bytes)
		for i, b := range bytes[:n] {
			if received+uint64(i) >= total || b != patternAt(received+uint64(i)) {
				fail("wrong bytes, after %d of %d bytes", received, total)
			}
		}
		received += uint64(n)
		if err == io.EOF && counter.betweenRecords() {
			break
		}
		if err != nil {
			fail("%v, after %d of %d bytes", err, received, total)
		}
	}
	if received != total {
		fail("the peer ended too early, after %d of %d bytes", received, total)
	}
	fmt.Printf("{\"bytes\": %d, \"writes\": %d, \"records_received\": %d, \"largest_record\": %d}\n",
		received, <-done, counter.records, counter.largest)
}

func parseSizes(text string) []uint64 {
	var sizes []uint64
	for _, word := range strings.Split(text, ",") {
		size, err := strconv.ParseUint(word, 10, 32)
		if err != nil || size == 0 {
			fail("--writes: '%s' is not a size", word)
		}
		sizes = append(sizes, size)
	}
	return sizes
}

func main() {
	conn.RegisterProtocol("ALTSRP_GCM_AES128", func(side core.Side, key []byte) (conn.ALTSRecordCrypto, error) {
		return conn.NewAES128GCM(side, key)
	})
	conn.RegisterProtocol("ALTSRP_GCM_AES128_REKEY", func(side core.Side, key []byte) (conn.ALTSRecordCrypto, error) {
		return conn.NewAES128GCMRekey(side, key)
	})
	keyHex := flag.String("key-hex", "", "the key, as hexadecimal digits")
	protocol := flag.String("record-protocol", "ALTSRP_GCM_AES128_REKEY", "ALTSRP_GCM_AES128_REKEY or ALTSRP_GCM_AES128")
	writes := flag.String("writes", "1000", "client: sizes of the writes, taken in turn")
	total := flag.Uint64("bytes", 0, "client: bytes to send")
	tellRecords := flag.Bool("tell-records", false, "echo: print which records came when a connection ends")
	flag.Parse()
	key, err := hex.DecodeString(*keyHex)
	if err != nil {
		fail("--key-hex: %v", err)
	}
	port, err := strconv.Atoi(flag.Arg(1))
	if err != nil {
		fail("PORT: %v", err)
	}
	p := &peer{*protocol, key, *tellRecords}
	switch flag.Arg(0) {
	case "echo":
		p.echo(port)
	case "client":
		p.client(port, parseSizes(*writes), *total)
	default:
		fail("'%s': expected echo or client", flag.Arg(0))
	}
}
