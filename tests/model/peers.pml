// Two sides that each keep one endpoint to the other, proved by Spin: both may call at any time, over
// streams that keep their order and that may be reset at any step; either side may be started again
// without a word, while what it had sent still comes.
//
// States and events are those of src/rdma/peer_set_core.h; model_test.py compares the tables. What the
// gate does is cut down to its messages: HELLO, ACCEPT or REJECT, READY. Claimed:
//   an endpoint opens only where it is the current one, so one stream at most is open at both ends (I11)
//   work of a side comes once at most, and not before the endpoint is open; without resets and restarts it
//   comes, even if a peer calls beside an endpoint that is alive
//   without resets and restarts one stream for each that calls is enough
//   nobody waits for ever: Spin calls that an invalid end state. At the end both are open on the same
//   stream, or nobody asks for it, or there is no stream left to try with
//
// Sides that are wrong on purpose:
//   -DBOTH_YIELD    each takes the other for the one with the smaller incarnation
//   -DBOTH_REFUSE   each takes the other for the one with the larger incarnation
//   -DBOTH_LIVE     what should be refused is accepted beside the call
//   -DWORK_EARLY    work goes along with the call, and again when an endpoint has opened
//   -DAT_ONCE       a peer that comes again takes the place of its endpoint without a probe

// How much of everything there is; model_test.py has the mixtures.
#ifndef STREAMS
#define STREAMS 2
#endif
#ifndef TROUBLES
#define TROUBLES 0       // resets of streams, attempts that fail for good, timeouts of probes
#endif
#ifndef RESTARTS
#define RESTARTS 0       // of sides
#endif
#ifndef STRAYS
#define STRAYS 0         // calls beside the endpoint that is open: a program with more than one of an incarnation
#endif

mtype = { kIdle, kPausing, kConnecting, kCalling, kAnswering, kOpen, kProbing };
mtype = { kWant, kUnwant, kTime, kStream, kOpened, kEnded, kEndedForGood, kHelloSmaller, kHelloLarger,
          kHelloRestarted, kHelloAgain, kHelloLate, kAlive, kHeldGone };
mtype = { mHello, mAccept, mReject, mReady, mWork, mPing, mPong, mEnd };

#define END(i, s) ((i) * 2 + (s))
#define NONE 255
#define ABSENT 0
#define OPENING 1
#define UP 2

// To each end of each stream.
chan to[STREAMS * 2] = [7] of { mtype };
byte here[STREAMS * 2];       // the endpoint there
byte said[STREAMS * 2];       // incarnation of the side there, when it made its endpoint
byte number[STREAMS * 2];     // of the attempt; ascends
bool broken[STREAMS];
byte streams;                 // made so far

mtype state[2] = kIdle;
byte self[2];                 // incarnation, which orders them
byte current[2] = NONE;
byte held[2] = NONE;
byte peer[2];                 // incarnation of the current endpoint's; 0: not known
byte last[2];                 // the latest heard of
byte past[2];
bool wanted[2];
bool waiting[2];              // work
byte came[2];                 // how often the work of a side has
byte troubles;
byte restarts;
byte strays;
bool over;

#define TROUBLE (troubles < TROUBLES && !over)
#define JOINED (state[0] == kOpen && state[1] == kOpen && current[0] == current[1])
#define NOBODY (state[0] == kIdle && state[1] == kIdle && !wanted[0] && !wanted[1])
#define STARVED(s) (state[s] == kConnecting && streams == STREAMS)
#define SETTLED(s) (STARVED(s) || state[s] == kOpen || (state[s] == kIdle && !wanted[s]))

c_decl {
  // Which rows of the table any run has used, for all of them; not part of a state.
  static int used[32];
  static void Use(int row) { used[row] = 1; }
  static void Report(void) {
    int row;
    for (row = 0; row < 29; ++row) {
      if (!used[row]) printf("transition %d of the table is never used\n", row);
    }
  }
};

// --- The table: where nothing is listed, the state stays; kUnwant ends everything ---

inline Apply(s, event) {
  if
  :: event == kUnwant -> state[s] = kIdle
  :: state[s] == kIdle && event == kWant -> state[s] = kConnecting; c_code { Use(0); }
  :: state[s] == kIdle && event == kHelloSmaller -> state[s] = kAnswering; c_code { Use(1); }
  :: state[s] == kIdle && event == kHelloLarger -> state[s] = kAnswering; c_code { Use(2); }
  :: state[s] == kPausing && event == kTime -> state[s] = kConnecting; c_code { Use(3); }
  :: state[s] == kPausing && event == kHelloSmaller -> state[s] = kAnswering; c_code { Use(4); }
  :: state[s] == kPausing && event == kHelloLarger -> state[s] = kAnswering; c_code { Use(5); }
  :: state[s] == kConnecting && event == kStream -> state[s] = kCalling; c_code { Use(6); }
  :: state[s] == kConnecting && event == kTime -> state[s] = kPausing; c_code { Use(7); }
  :: state[s] == kConnecting && event == kEnded -> state[s] = kPausing; c_code { Use(8); }
  :: state[s] == kConnecting && event == kEndedForGood -> state[s] = kIdle; c_code { Use(9); }
  :: state[s] == kConnecting && event == kHelloSmaller -> state[s] = kAnswering; c_code { Use(10); }
  :: state[s] == kConnecting && event == kHelloLarger -> state[s] = kAnswering; c_code { Use(11); }
  :: state[s] == kCalling && event == kOpened -> state[s] = kOpen; c_code { Use(12); }
  :: state[s] == kCalling && event == kEnded -> state[s] = kPausing; c_code { Use(13); }
  :: state[s] == kCalling && event == kEndedForGood -> state[s] = kIdle; c_code { Use(14); }
  :: state[s] == kCalling && event == kHelloSmaller -> state[s] = kAnswering; c_code { Use(15); }
  :: state[s] == kAnswering && event == kOpened -> state[s] = kOpen; c_code { Use(16); }
  :: state[s] == kAnswering && event == kEnded -> state[s] = kPausing; c_code { Use(17); }
  :: state[s] == kAnswering && event == kEndedForGood -> state[s] = kIdle; c_code { Use(18); }
  :: state[s] == kOpen && event == kEnded -> state[s] = kPausing; c_code { Use(19); }
  :: state[s] == kOpen && event == kEndedForGood -> state[s] = kIdle; c_code { Use(20); }
  :: state[s] == kOpen && event == kHelloRestarted -> state[s] = kAnswering; c_code { Use(21); }
  :: state[s] == kOpen && event == kHelloAgain -> state[s] = kProbing; c_code { Use(22); }
  :: state[s] == kProbing && event == kTime -> state[s] = kAnswering; c_code { Use(23); }
  :: state[s] == kProbing && event == kEnded -> state[s] = kAnswering; c_code { Use(24); }
  :: state[s] == kProbing && event == kEndedForGood -> state[s] = kAnswering; c_code { Use(25); }
  :: state[s] == kProbing && event == kHelloRestarted -> state[s] = kAnswering; c_code { Use(26); }
  :: state[s] == kProbing && event == kAlive -> state[s] = kOpen; c_code { Use(27); }
  :: state[s] == kProbing && event == kHeldGone -> state[s] = kOpen; c_code { Use(28); }
  :: else
  fi
}

// --- Streams ---

inline Send(i, s, what) {
  if
  :: !broken[i] -> to[END(i, 1 - (s))]!what
  :: else
  fi
}

inline LetGo(i, s) {
  if
  :: here[END(i, s)] != ABSENT -> here[END(i, s)] = ABSENT; Send(i, s, mEnd)
  :: else
  fi
}

inline Make(i, s, n) {
  here[END(i, s)] = OPENING; said[END(i, s)] = self[s]; number[END(i, s)] = n
}

// --- One side: what PeerLink does at each step of the table ---

inline Refuse(i, s) {
  if
  :: i != NONE -> Send(i, s, mReject); LetGo(i, s)
  :: else
  fi
}

inline Hear(s, incarnation) {
  if
  :: incarnation != last[s] ->
     if
     :: past[s] == incarnation -> past[s] = 0
     :: else
     fi;
     if
     :: last[s] != 0 -> past[s] = last[s]
     :: else
     fi;
     last[s] = incarnation
  :: else
  fi
}

inline Answer(i, s) {
  if
  :: current[s] != NONE -> LetGo(current[s], s)
  :: else
  fi;
  current[s] = i; peer[s] = said[END(i, 1 - (s))];
  Send(i, s, mAccept)
}

inline Tell(s) {
  if
  :: waiting[s] -> waiting[s] = false; Send(current[s], s, mWork)
  :: else
  fi
}

inline Opened(i, s) {
  assert(current[s] == i);                                                   // (I11)
  here[END(i, s)] = UP;
  peer[s] = said[END(i, 1 - (s))];
  Hear(s, peer[s]);
  Apply(s, kOpened);
  Tell(s)
}

inline OnHello(i, s) {
  from = said[END(i, 1 - (s))];
  if
  :: peer[s] == from && (number[END(i, 1 - (s))] <= number[END(current[s], 1 - (s))] ||
     (held[s] != NONE && number[END(i, 1 - (s))] <= number[END(held[s], 1 - (s))])) ->
     event = kHelloLate
  :: else ->
     if
     :: peer[s] == 0 && from < self[s] -> event = kHelloSmaller
     :: peer[s] == 0 && from > self[s] -> event = kHelloLarger
     :: peer[s] == from -> event = kHelloAgain
     :: peer[s] != 0 && peer[s] != from && past[s] == from -> event = kHelloLate
     :: else -> event = kHelloRestarted
     fi
  fi;
#ifdef BOTH_YIELD
  if
  :: event == kHelloLarger -> event = kHelloSmaller
  :: else
  fi;
#endif
#ifdef BOTH_REFUSE
  if
  :: event == kHelloSmaller -> event = kHelloLarger
  :: else
  fi;
#endif
  if
  :: event != kHelloLate -> Hear(s, from)
  :: else
  fi;
  before = state[s];
#ifdef AT_ONCE
  if
  :: event == kHelloAgain && before == kOpen -> event = kHelloRestarted
  :: else
  fi;
#endif
  Apply(s, event);
  if
  :: state[s] == kAnswering && event != kHelloLate && (before != kAnswering || event == kHelloAgain ||
     event == kHelloRestarted) -> Refuse(held[s], s); held[s] = NONE; Answer(i, s)
  :: state[s] == kProbing && event == kHelloAgain ->
     if
     :: before == kProbing -> Refuse(held[s], s)
     :: else -> Send(current[s], s, mPing)
     fi;
     held[s] = i
#ifdef BOTH_LIVE
  :: state[s] == kCalling -> Send(i, s, mAccept)
#endif
  :: else -> Refuse(i, s)
  fi;
  from = 0; event = 0; before = 0
}

inline OnEnd(i, s) {
  LetGo(i, s);
  if
  :: current[s] == i ->
     before = state[s];
     current[s] = NONE; peer[s] = 0;
     if
     :: wanted[s] -> Apply(s, kEnded)
     :: else -> Apply(s, kEndedForGood)
     fi;
     if
     :: before == kProbing -> Answer(held[s], s); held[s] = NONE
     :: else
     fi;
     before = 0
  :: held[s] == i -> held[s] = NONE; Apply(s, kHeldGone)
  :: else
  fi
}

inline OnMessage(i, s, what) {
  if
  :: what == mHello -> Make(i, s, streams); OnHello(i, s)
  :: what == mAccept && here[END(i, s)] == OPENING -> Send(i, s, mReady); Opened(i, s)
  :: what == mReady && here[END(i, s)] == OPENING -> Opened(i, s)
  :: (what == mReject || what == mEnd) && here[END(i, s)] != ABSENT -> OnEnd(i, s)
  :: what == mPing && here[END(i, s)] == UP -> Send(i, s, mPong)
  :: what == mPong && current[s] == i && state[s] == kProbing ->
     Apply(s, kAlive); Refuse(held[s], s); held[s] = NONE
  :: what == mWork && here[END(i, s)] != ABSENT ->
#ifndef WORK_EARLY
     assert(here[END(i, s)] == UP);
#endif
     came[1 - (s)]++; assert(came[1 - (s)] == 1)
  :: else  // of what has ended
  fi
}

inline Call(s) {
  Make(streams, s, streams + 1);
  current[s] = streams;
  streams++;
  Apply(s, kStream);
  Send(current[s], s, mHello);
#ifdef WORK_EARLY
  Send(current[s], s, mWork)
#endif
}

// Nobody waits for what is answered.
inline Stray(s) {
  said[END(streams, s)] = self[s]; number[END(streams, s)] = streams + 1;
  streams++;
  Send(streams - 1, s, mHello);
  Send(streams - 1, s, mEnd)
}

inline Drop(i, s) {
  do
  :: nempty(to[END(i, s)]) -> to[END(i, s)]?_
  :: empty(to[END(i, s)]) -> break
  od
}

// Whose ends hear of it one after the other.
inline Reset(i) {
  Drop(i, 0); Drop(i, 1);
  Send(i, 0, mEnd); Send(i, 1, mEnd);
  broken[i] = true
}

inline StartAgain(s) {
  i = 0;
  do
  :: i < streams -> Drop(i, s); here[END(i, s)] = ABSENT; i++
  :: else -> break
  od;
  state[s] = kIdle; current[s] = NONE; held[s] = NONE; peer[s] = 0;
  last[s] = 0; past[s] = 0; waiting[s] = false;
  wanted[s] = true;
  // The order of the two turns round.
  self[s] = (s == 0 -> 4 : 1);
  i = 0
}

// Nobody is at the other end, without a word: the deadline for opening, or a ping, will tell.
#define DESERTED(i, s) (here[END(i, s)] != ABSENT && here[END(i, 1 - (s))] == ABSENT && \
                        empty(to[END(i, 0)]) && empty(to[END(i, 1)]) && restarts > 0)
#define QUIET (empty(to[0]) && empty(to[1]) && empty(to[2]) && empty(to[3]) && \
               (STREAMS < 3 || (empty(to[STREAMS * 2 - 2]) && empty(to[STREAMS * 2 - 1]))))

proctype Side(byte s) {
  byte i, from;
  mtype what, event, before;
  do
  :: atomic { state[s] == kIdle && wanted[s] && !over -> Apply(s, kWant) }
  :: atomic { state[s] == kPausing && !over -> Apply(s, kTime) }
  :: atomic { state[s] == kConnecting && streams < STREAMS && !over -> Call(s) }
  :: atomic { state[s] == kConnecting && TROUBLE ->
       troubles++;
       if
       :: true -> Apply(s, kTime)
       :: true -> Apply(s, kEnded)
       :: wanted[s] = false; Apply(s, kEndedForGood)
       fi }
  :: atomic { state[s] == kCalling && TROUBLE ->  // by what waiting does not mend
       troubles++; wanted[s] = false; OnEnd(current[s], s) }
  :: atomic { state[s] != kIdle && TROUBLE ->
       troubles++; wanted[s] = false; Refuse(held[s], s); held[s] = NONE;
       if
       :: current[s] != NONE -> LetGo(current[s], s); current[s] = NONE
       :: else
       fi;
       peer[s] = 0; Apply(s, kUnwant) }
  :: atomic { state[s] == kProbing && !over &&
              (TROUBLE || here[END(current[s], 1 - s)] == ABSENT) ->
       if
       :: here[END(current[s], 1 - s)] != ABSENT -> troubles++
       :: else
       fi;
       Apply(s, kTime); Answer(held[s], s); held[s] = NONE }
  :: atomic { JOINED && strays < STRAYS && streams < STREAMS && !over -> strays++; Stray(s) }
  :: atomic { restarts < RESTARTS && !over -> restarts++; StartAgain(s) }
  :: atomic { nempty(to[END(0, s)]) -> to[END(0, s)]?what; OnMessage(0, s, what); what = 0 }
  :: atomic { nempty(to[END(1, s)]) -> to[END(1, s)]?what; OnMessage(1, s, what); what = 0 }
  :: atomic { broken[0] == false && streams > 0 && TROUBLE -> troubles++; Reset(0) }
  :: atomic { broken[1] == false && streams > 1 && TROUBLE -> troubles++; Reset(1) }
  :: atomic { DESERTED(0, s) -> OnEnd(0, s) }
  :: atomic { DESERTED(1, s) -> OnEnd(1, s) }
#if STREAMS > 2
  :: atomic { broken[2] == false && streams > 2 && TROUBLE -> troubles++; Reset(2) }
  :: atomic { nempty(to[END(2, s)]) -> to[END(2, s)]?what; OnMessage(2, s, what); what = 0 }
  :: atomic { DESERTED(2, s) -> OnEnd(2, s) }
#endif
  :: atomic { over -> break }
  :: atomic { QUIET && (JOINED || NOBODY) ->
       assert(TROUBLES + RESTARTS > 0 || (came[0] == 1 && came[1] == 1));
       over = true; break }
  :: atomic { QUIET && !JOINED && SETTLED(0) && SETTLED(1) && (STARVED(0) || STARVED(1)) ->
       assert(TROUBLES + RESTARTS + STRAYS > 0);
       over = true; break }
  od
}

init {
  atomic {
    c_code { atexit(Report); };
    self[0] = 2; self[1] = 3;
    waiting[0] = true; waiting[1] = true;
    wanted[0] = true;
    if
    :: wanted[1] = true
    :: wanted[1] = false
    fi;
    run Side(0);
    run Side(1)
  }
}
