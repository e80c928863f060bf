#!/usr/bin/env bash
# Makes a throw-away CA and certificates for trying sealed streams. See --help.
set -eu -o pipefail

usage() {
  cat <<USAGE
usage: examples/make_certs.sh FOLDER [SERVER_NAME]

Makes a certificate authority of its own in FOLDER, and signed by it a certificate for a server
called SERVER_NAME (localhost unless given; 127.0.0.1 and ::1 too) and one for a client; and a key
of 32 random bytes for --seal=psk. They are valid for 30 days. What is there already is kept.
  FOLDER/ca.pem                        --ca of both sides
  FOLDER/server.pem, server.key        --cert and --key of the side that listens
  FOLDER/client.pem, client.key        --cert and --key of the side that connects
  FOLDER/psk.hex                       --psk-file of both sides
For trying things only: the key of the authority lies beside it, unencrypted.
USAGE
}

case ${1-} in
  -h|--help) usage; exit 0 ;;
  ''|-*) usage >&2; exit 2 ;;
esac
[ $# -le 2 ] || { usage >&2; exit 2; }
command -v openssl > /dev/null || { echo "make_certs.sh: openssl is not installed" >&2; exit 1; }

umask 077
mkdir -p "$1"
cd "$1"
name=${2:-localhost}
days=30

if [ ! -s ca.pem ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout ca.key -out ca.pem \
    -days $days -subj "/CN=Penstock throw-away CA $RANDOM" \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign" 2> /dev/null
fi

# make WHO COMMON_NAME ALTERNATIVE_NAMES EXTENDED_KEY_USAGE
make() {
  [ ! -s "$1.pem" ] || return 0
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout "$1.key" -out "$1.csr" \
    -subj "/CN=$2" 2> /dev/null
  printf '%s\n' "basicConstraints=critical,CA:FALSE" "keyUsage=critical,digitalSignature" \
    "extendedKeyUsage=$4" "subjectAltName=$3" > "$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days $days \
    -extfile "$1.ext" -out "$1.pem" 2> /dev/null
  rm "$1.csr" "$1.ext"
}
make server "$name" "DNS:$name,IP:127.0.0.1,IP:::1" serverAuth
make client client "URI:spiffe://penstock.example/client" clientAuth

[ -s psk.hex ] || openssl rand -hex 32 > psk.hex
echo "In $PWD:" ca.pem server.pem server.key client.pem client.key psk.hex
