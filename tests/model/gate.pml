// The ready gate, proved by Spin: an active and a passive side that try to open an endpoint, again and
// again, over a control stream that loses, repeats and reorders, on lanes that come up when they like
// and take what an earlier attempt left in flight, with a reset at any moment.
//
// Streams do none of that to messages, and one gate serves one attempt, so all this is more than a gate
// ever meets; what holds here does not rest on the order of the stream, nor on who is told first of an
// end. Queue pair numbers are taken to be the same in every attempt: nothing is known by them. An end is
// told to nobody: that it comes at any moment, by the deadline, covers it.
//
// States and events are those of src/rdma/ready_gate.h; model_test.py compares the tables. Claimed:
//   whoever posts has lanes that are up, and so had the peer in this attempt (I6)
//   a side that is closed posts no more in that attempt (I7), and its next one begins like the first
//   nobody waits for ever: Spin calls that an invalid end state
//
// Gates that are wrong on purpose:
//   -DGATE_OFF      the passive side opens as soon as its own lanes are up
//   -DLATE_OPENS    what tells the active side of its lanes opens it, whatever has happened since
//   -DANY_READY     READY of any attempt opens
//   -DANY_DATA      data of any attempt opens
//   -DNO_DEADLINE   READY and data are waited for without one

// How much of everything there is; model_test.py has the mixtures.
#ifndef ATTEMPTS
#define ATTEMPTS 2       // of each side
#endif
#ifndef TROUBLES
#define TROUBLES 1       // messages lost or repeated, and resets
#endif
#ifndef OLD
#define OLD 0            // who knows no READY: 1 the active side, 2 the passive one
#endif

mtype = { kIdle, kHelloSent, kActiveBringup, kPassiveBringup, kWaitReady, kWaitData, kOpen, kClosed };
mtype = { kConnect, kHello, kAccept, kLanesUp, kLanesUpWaitData, kLanesUpAtOnce, kReady, kData, kEnd };

#define ACTIVE 0
#define PASSIVE 1
#define WAS_UP(s, attempt) was_up[(s) * (ATTEMPTS + 1) + (attempt)]

// To each side: message, attempt of the active side, attempt of the passive side; 0: not known.
chan control0 = [2] of { mtype, byte, byte };
chan control1 = [2] of { mtype, byte, byte };
// The same of data.
chan data0 = [2] of { byte, byte };
chan data1 = [2] of { byte, byte };
// Continuations of bring-ups, with their attempt.
chan told0 = [ATTEMPTS] of { byte };
chan told1 = [ATTEMPTS] of { byte };

mtype gate[2] = kIdle;
byte own[2] = 1;              // the attempt
byte peer[2];                 // the peer's, as HELLO or ACCEPT said
byte coming[2];               // the attempt whose lanes are being brought up
bool up[2];                   // the lanes of this attempt
bool was_up[2 * (ATTEMPTS + 1)];
bool posted[2];               // in this attempt
byte troubles;
bool over;

#define TROUBLE (troubles < TROUBLES)
#define DONE(s) ((gate[s] == kOpen && posted[s]) || (gate[s] == kClosed && own[s] == ATTEMPTS))
#define QUIET (empty(control0) && empty(control1) && empty(data0) && empty(data1) && \
               empty(told0) && empty(told1) && coming[0] == 0 && coming[1] == 0)

c_decl {
  // Which rows of the table any run has used, for all of them; not part of a state.
  static int used[16];
  static void Use(int row) { used[row] = 1; }
  static void Report(void) {
    int row;
    for (row = 0; row < 15; ++row) {
      if (!used[row]) printf("transition %d of the table is never used\n", row);
    }
  }
};

// --- The table ---

inline Apply(s, event) {
  if
  :: gate[s] == kClosed
  :: gate[s] != kClosed && event == kEnd -> gate[s] = kClosed
  :: gate[s] == kIdle && event == kConnect -> gate[s] = kHelloSent; c_code { Use(0); }
  :: gate[s] == kIdle && event == kHello -> gate[s] = kPassiveBringup; c_code { Use(1); }
  :: gate[s] == kHelloSent && event == kAccept -> gate[s] = kActiveBringup; c_code { Use(2); }
  :: gate[s] == kActiveBringup && event == kLanesUp -> gate[s] = kOpen; c_code { Use(3); }
  :: gate[s] == kActiveBringup && event == kLanesUpWaitData -> gate[s] = kOpen; c_code { Use(4); }
  :: gate[s] == kActiveBringup && event == kLanesUpAtOnce -> gate[s] = kOpen; c_code { Use(5); }
  :: gate[s] == kActiveBringup && event == kData -> gate[s] = kActiveBringup; c_code { Use(6); }
  :: gate[s] == kPassiveBringup && event == kLanesUp -> gate[s] = kWaitReady; c_code { Use(7); }
  :: gate[s] == kPassiveBringup && event == kLanesUpWaitData -> gate[s] = kWaitData; c_code { Use(8); }
  :: gate[s] == kPassiveBringup && event == kLanesUpAtOnce -> gate[s] = kOpen; c_code { Use(9); }
  :: gate[s] == kWaitReady && event == kReady -> gate[s] = kOpen; c_code { Use(10); }
  :: gate[s] == kWaitReady && event == kData -> gate[s] = kOpen; c_code { Use(11); }
  :: gate[s] == kWaitData && event == kData -> gate[s] = kOpen; c_code { Use(12); }
  :: gate[s] == kOpen && event == kData -> gate[s] = kOpen; c_code { Use(13); }
  :: gate[s] == kOpen && event == kReady -> gate[s] = kOpen; c_code { Use(14); }
  :: else ->
     if
     :: event == kHello || event == kAccept || event == kReady || event == kData -> gate[s] = kClosed
     :: else
     fi
  fi
}

// --- What goes between the sides; what finds no room is lost ---

inline Tell(to, message, x, y) {
  if
  :: to == ACTIVE && len(control0) < 2 -> control0!message,x,y
  :: to == PASSIVE && len(control1) < 2 -> control1!message,x,y
  :: else
  fi
}

inline PostTo(to, x, y) {
  if
  :: to == ACTIVE && len(data0) < 2 -> data0!x,y
  :: to == PASSIVE && len(data1) < 2 -> data1!x,y
  :: else
  fi
}

#define MATCHES(s, a, p) ((s == ACTIVE && a == own[s] && p == peer[s]) || \
                          (s == PASSIVE && a == peer[s] && p == own[s]))

// --- One side ---

// What was under way finds its attempt gone; it still tells.
inline BringUp(s) {
  if
  :: coming[s] != 0 -> FinishBringUp(s)
  :: else
  fi;
  coming[s] = own[s]
}

inline FinishBringUp(s) {
  if
  :: coming[s] == own[s] && gate[s] != kClosed -> up[s] = true; WAS_UP(s, own[s]) = true
  :: else
  fi;
  if
  :: s == ACTIVE -> told0!coming[s]
  :: else -> told1!coming[s]
  fi;
  coming[s] = 0
}

inline OnTold(s, attempt) {
#ifdef LATE_OPENS
  if
  :: s == ACTIVE -> gate[s] = kOpen
  :: s == PASSIVE && attempt == own[s] -> OnLanesUp(s)
  :: else
  fi
#else
  if
  :: attempt == own[s] -> OnLanesUp(s)
  :: else  // late
  fi
#endif
}

inline OnLanesUp(s) {
  before = gate[s];
#ifdef GATE_OFF
  if
  :: s == ACTIVE -> Apply(s, kLanesUp)
  :: else -> Apply(s, kLanesUpAtOnce)
  fi;
#elif OLD == 0
  Apply(s, kLanesUp);
#else
  if
  :: OLD == 1 + s -> Apply(s, kLanesUpAtOnce)
  :: else -> Apply(s, kLanesUpWaitData)
  fi;
#endif
  if
  :: before == kPassiveBringup -> Tell(ACTIVE, kAccept, peer[s], own[s])
  :: before == kActiveBringup && gate[s] == kOpen && OLD == 0 ->
     Tell(PASSIVE, kReady, own[s], peer[s])
  :: else
  fi;
  before = kIdle
}

inline OnMessage(s, what, a, p) {
  if
  :: what == kHello && gate[s] == kIdle ->
     peer[s] = a; Apply(s, kHello); BringUp(s)
  :: what == kHello && gate[s] != kIdle -> Apply(s, kHello)
  :: what == kAccept && a == own[s] && gate[s] == kHelloSent ->
     peer[s] = p; Apply(s, kAccept); BringUp(s)
  :: what == kAccept && a == own[s] && gate[s] != kHelloSent -> Apply(s, kAccept)
#ifdef ANY_READY
  :: what == kReady -> Apply(s, kReady)
#else
  :: what == kReady && MATCHES(s, a, p) -> Apply(s, kReady)
#endif
  :: else  // of another attempt
  fi
}

inline OnData(s, a, p) {
  if
  :: !up[s]  // the device drops it
#ifdef ANY_DATA
  :: up[s] -> Apply(s, kData)
#else
  :: up[s] && MATCHES(s, a, p) -> Apply(s, kData)
  :: up[s] && !MATCHES(s, a, p) -> Apply(s, kEnd)
#endif
  fi
}

inline Post(s) {
  posted[s] = true;
#if OLD == 2
  assert(s == PASSIVE || (up[s] && WAS_UP(1 - s, peer[s])));                 // (I6)
#else
  assert(up[s] && WAS_UP(1 - s, peer[s]));                                   // (I6)
#endif
  if
  :: s == ACTIVE -> PostTo(PASSIVE, own[s], peer[s])
  :: else -> PostTo(ACTIVE, peer[s], own[s])
  fi
}

inline BeginAnew(s) {
  own[s]++;
  gate[s] = kIdle;
  peer[s] = 0;
  posted[s] = false;
  up[s] = false
}

#ifdef NO_DEADLINE
#define WAITS(s) (gate[s] != kOpen && gate[s] != kClosed && gate[s] != kWaitReady && \
                  gate[s] != kWaitData)
#else
#define WAITS(s) (gate[s] != kOpen && gate[s] != kClosed)
#endif

proctype Side(byte s; chan control; chan data; chan told) {
  byte a, p;
  mtype what, before = kIdle;
  do
  :: atomic { s == ACTIVE && gate[s] == kIdle ->
       Apply(s, kConnect); Tell(PASSIVE, kHello, own[s], 0) }
  :: atomic { nempty(control) ->
       control?what,a,p; OnMessage(s, what, a, p); what = 0; a = 0; p = 0 }
  :: atomic { len(control) == 2 ->  // in another order
       control?what,a,p; control!what,a,p; what = 0; a = 0; p = 0 }
  :: atomic { nempty(control) && TROUBLE ->
       troubles++; control?what,a,p; what = 0; a = 0; p = 0 }
  :: atomic { len(control) == 1 && TROUBLE ->
       troubles++; control?what,a,p; control!what,a,p; control!what,a,p; what = 0; a = 0; p = 0 }
  :: atomic { coming[s] != 0 -> FinishBringUp(s) }
  :: atomic { coming[s] != 0 && TROUBLE ->  // a lane fails
       troubles++;
       if
       :: coming[s] == own[s] -> Apply(s, kEnd)
       :: else
       fi;
       coming[s] = 0 }
  :: atomic { nempty(told) -> told?a; OnTold(s, a); a = 0 }
  :: atomic { nempty(data) -> data?a,p; OnData(s, a, p); a = 0; p = 0 }
  :: atomic { gate[s] == kOpen && !posted[s] -> Post(s) }
  :: atomic { WAITS(s) -> Apply(s, kEnd) }  // the deadline
  :: atomic { gate[s] != kClosed && TROUBLE && !over -> troubles++; Apply(s, kEnd) }  // a reset
  :: atomic { gate[s] == kClosed && own[s] < ATTEMPTS -> BeginAnew(s) }
  :: atomic { DONE(ACTIVE) && DONE(PASSIVE) && QUIET -> over = true; break }
  od
}

init {
  atomic {
    c_code { atexit(Report); };
    run Side(ACTIVE, control0, data0, told0);
    run Side(PASSIVE, control1, data1, told1)
  }
}
