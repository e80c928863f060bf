// A move of one live connection, proved by Spin: between the two engines of a loop, one of which
// learns of bytes by readiness and the other by completions, and between two loops. Everything that
// src/engine/connection_move.cc and the engines leave to the kernel or to another thread happens here
// in every order: bytes before, during and after a cancel; what a cancel answers; the terminal
// completion, with or without bytes; the peer's end; the owner; a refusal; loops that go.
//
// States and events are those of src/engine/parcel.h; model_test.py compares the tables. Everything
// is bounded, so every run ends; a run that ends too early is what Spin calls an invalid end state.
//
// Claimed, besides that:
//   bytes are delivered once and in order (I5)
//   the peer's end arrives once, as itself and after all bytes (I5)
//   one engine at a time has the connection (I4), and no completion with bytes finds nobody
//   callbacks run where the connection is, never while it is moving, and each exactly once, or it is
//   destroyed unrun with its stream
// With -DENDS also, in every run in which no process is kept waiting for ever:
//   a move that was begun ends, and whoever asked for it is told
//
// Engines that are wrong on purpose, as in tests/testing/sim_faults.h:
//   -DDROP_LATE      bytes received after a cancel are thrown away
//   -DSKIP_TERMINAL  a connection is let go of while the kernel still holds an operation of it
//   -DTWO_OWNERS     a connection is let go of with its operations armed, and not told to end
// And a loop, of which only -DENDS finds out:
//   -DSTAYS_READY    a suspended connection stays on the ready list, which a hand-over waits for

// How much of everything there is; model_test.py has the mixtures.
#define BYTES 2          // that the peer sends before its end
#define CANCELS 1        // repeats of a cancel that missed, before the engine gives up
#ifndef LOOPS
#define LOOPS 2
#endif
#ifndef MOVES
#define MOVES 1          // that the owner asks for
#endif
#ifndef TROUBLES
#define TROUBLES 1       // in any mixture: see TROUBLE
#endif
#ifndef WRITES
#define WRITES 0         // of a byte, by the owner
#endif
#ifndef ROUGH
#define ROUGH 0          // the stream is closed or ended at any moment, or loops go
#endif

mtype = { kAttached, kAsked, kQuiescing, kInTransit };
mtype = { kAsk, kBegin, kReleased, kTaken, kEnd };

// Of the connection, as in src/engine/connection.h.
mtype = { kOpen, kClosing, kClosed };
// Results of completions: of a receive, a poll and a cancel.
mtype = { kData, kEof, kReset, kNoBuffer, kRoom, kCancelled, kDone, kNotFound, kAlready };
// What the kernel is asked for, and the ways of a transit.
mtype = { kArm, kCancel, kThere, kBack };

#define A 0
#define B 1
#define NOWHERE 2
#define READINESS 0
#define COMPLETION 1

// Operations; a cancel is the completion CANCEL of its target.
#define RECEIVE 0
#define POLL 1
#define CANCEL 2
#define OP(l, op) ((l) * 2 + (op))
// An attach that fails; a terminal completion with bytes; a receive without a buffer; a cancel that
// misses.
#define TROUBLE (troubles < TROUBLES)

// --- The socket ---

byte arrived;                 // bytes numbered from 1 that have come
byte taken;                   // of these, by a receive
mtype peer_end = 0;           // kEof, kReset: has come, after the bytes
bool reset_told;              // the kernel tells a reset once, and then an end of stream
bool room;                    // for a byte to send

#define WAITING (arrived > taken || peer_end != 0)

// --- The kernel's half of the engines, for each loop ---

bool registered[2];           // readiness: is watched
byte edge[2];                 // readiness: an event waits, for generation edge - 1
byte live[4];                 // completion: an operation, of generation live - 1; 0: none
chan submitted0 = [6] of { mtype, byte, byte };             // kArm or kCancel, operation, generation
chan submitted1 = [6] of { mtype, byte, byte };
chan completed0 = [9] of { byte, byte, mtype, byte, bool, byte };
chan completed1 = [9] of { byte, byte, mtype, byte, bool, byte };
// operation, its target when it is CANCEL, result, byte, whether more follow, generation

// --- The engines' half ---

byte generation[2];           // of the slot; a token of before finds nothing (I4)
bool armed[4];                // no terminal completion has been dispatched
bool cancelling[4];
byte cancels[2];
bool has[4];                  // (I4): the engine OP(loop, style) has the connection
bool readable;                // a plain receive may find something
bool leaving;                 // Detach: its terminal completions are waited for
bool releasing;               // Release: the same

// --- The connection ---

mtype state = kOpen;
mtype move = kAttached;
byte at = A;                  // the loop that has it
byte style = READINESS;       // of the engine that has it
byte from;                    // of a switch
bool suspended;
bool ready;                   // on the loop's ready list
bool deferred;                // the parcel is on the loop's list
chan rx = [BYTES] of { byte };
mtype read_end = 0;
mtype write_end = 0;
bool read_done;               // a callback waits
bool write_done;
bool tx;                      // a byte is queued
bool write_blocked;
bool refused;                 // Parcel::refusal
byte to_loop;                 // Parcel::target; `at`: none
byte to_style;
byte source;
byte source_style;

// --- The owner, its loops, and what they may know in the end ---

bool patient;                 // goes only when everything has come
bool mortal;                  // loops may go
bool gone[2];
byte troubles;                // that there were: what seldom happens, and may happen at any moment
chan mail0 = [1] of { mtype };
chan mail1 = [1] of { mtype };
byte asked;                   // moves
byte waiting;                 // of these, callbacks that have not run
byte delivered;               // bytes
bool end_told;
bool wrote = !WRITES;         // the one write was made

c_decl {
  // Which rows of the table any run has used, for all of them; not part of a state.
  static int used[8];
  static void Use(int row) { used[row] = 1; }
  static void Report(void) {
    int row;
    for (row = 0; row < 8; ++row) {
      if (!used[row]) printf("transition %d of the table is never used\n", row);
    }
  }
};

// --- The table ---

inline Apply(event) {
  if
  :: move == kAttached && event == kAsk -> move = kAsked; c_code { Use(0); }
  :: move == kAsked && event == kBegin -> move = kQuiescing; c_code { Use(1); }
  :: move == kAsked && event == kEnd -> move = kAttached; c_code { Use(2); }
  :: move == kQuiescing && event == kReleased -> move = kInTransit; c_code { Use(3); }
  :: move == kQuiescing && event == kTaken -> move = kAttached; c_code { Use(4); }
  :: move == kQuiescing && event == kEnd -> move = kAttached; c_code { Use(5); }
  :: move == kInTransit && event == kTaken -> move = kAttached; c_code { Use(6); }
  :: move == kInTransit && event == kEnd -> move = kAttached; c_code { Use(7); }
  :: else
  fi
}

// --- The engines ---

inline Submit(l, what, op) {
  if
  :: l == A -> submitted0!what,op,generation[A]
  :: else -> submitted1!what,op,generation[B]
  fi
}

inline Arm(l, op) {
  armed[OP(l, op)] = true;
  Submit(l, kArm, op)
}

inline Cancel(l, op) {
  if
  :: armed[OP(l, op)] && !cancelling[OP(l, op)] ->
     cancelling[OP(l, op)] = true;
     Submit(l, kCancel, op)
  :: else
  fi
}

inline Disarm(l, op) {
  armed[OP(l, op)] = false;
  cancelling[OP(l, op)] = false;
  cancels[l] = 0
}

// Tokens of before find nothing. Numbers begin anew when nobody has one, for fewer states.
inline NewGeneration(l) {
  if
  :: edge[l] == 0 && live[OP(l, RECEIVE)] == 0 && live[OP(l, POLL)] == 0 &&
     ((l == A && len(completed0) == 0 && len(submitted0) == 0) ||
      (l == B && len(completed1) == 0 && len(submitted1) == 0)) -> generation[l] = 0
  :: else -> generation[l]++
  fi
}

// The slot's engine word is new.
inline Renew(l) {
  NewGeneration(l);
  armed[OP(l, RECEIVE)] = false; armed[OP(l, POLL)] = false;
  cancelling[OP(l, RECEIVE)] = false; cancelling[OP(l, POLL)] = false;
  cancels[l] = 0;
  readable = false; leaving = false; releasing = false
}

// Engine::Attach, of OP(l, style); `ok` is the result.
inline Attach(l) {
  if
  :: TROUBLE -> troubles++; ok = false
  :: true ->
     ok = true;
     assert(!has[0] && !has[1] && !has[2] && !has[3]);                       // (I4)
     has[OP(l, style)] = true;
     if
     :: style == READINESS ->
        registered[l] = true;
        if :: WAITING || room -> edge[l] = generation[l] + 1 :: else fi
     :: else
     fi
  fi
}

inline LetGo(l) {
  has[OP(l, style)] = false;
  if :: style == READINESS -> registered[l] = false :: else fi
}

// Engine::Release; `ok`: nothing is held.
inline Release(l) {
#ifdef TWO_OWNERS
  if
  :: armed[OP(l, RECEIVE)] || armed[OP(l, POLL)] -> ok = true
  :: else -> LetGo(l); ok = true
  fi
#else
  if
  :: !armed[OP(l, RECEIVE)] && !armed[OP(l, POLL)] -> LetGo(l); ok = true
  :: else ->
     releasing = true;
     Cancel(l, RECEIVE);
     Cancel(l, POLL);
     ok = false;
#ifdef SKIP_TERMINAL
     LetGo(l); ok = true
#endif
  fi
#endif
}

// Engine::Detach, and what Connection::Close does about it.
inline Detach(l) {
  if
  :: !armed[OP(l, RECEIVE)] && !armed[OP(l, POLL)] -> OnDetached(l)
  :: else -> leaving = true; Cancel(l, RECEIVE); Cancel(l, POLL)
  fi
}

inline OnDetached(l) {
  LetGo(l);
  Renew(l);
  state = kClosed
}

// An operation of a connection that is leaving or being released has ended.
inline Parted(l) {
  if
  :: armed[OP(l, RECEIVE)] || armed[OP(l, POLL)]
  :: else ->
     if
     :: leaving -> OnDetached(l)
     :: else -> LetGo(l); OnReleased(l)
     fi
  fi
}

// --- The connection: receiving and sending ---

inline OnReceived(byte_number) { rx!byte_number }

inline OnReceiveEnded(how) {
  if
  :: read_end != 0
  :: read_end == 0 && how == kEof && write_end == kReset -> read_end = kReset
  :: else -> read_end = how
  fi;
  if :: read_end == kReset && write_end == 0 -> write_end = kReset :: else fi
}

// What a receive finds when no byte waits.
inline TakeEnd(how) {
  if
  :: peer_end == kReset && !reset_told -> reset_told = true; how = kReset
  :: else -> how = kEof
  fi
}

// Callbacks run here and at no other place.
inline CheckCallback(l) { assert(at == l && !suspended && !gone[l]) }

inline RunReadDone(l) {
  CheckCallback(l);
  read_done = false;
  if
  :: len(rx) > 0 ->
     rx?value;
     assert(value == delivered + 1);                                         // (I5)
     delivered++
  :: else ->
     assert(!end_told && read_end == peer_end && delivered == arrived);      // (I5)
     end_told = true
  fi;
  value = 0
}

inline RunWriteDone(l) {
  CheckCallback(l);
  write_done = false
}

// Connection::Service, one round of it.
inline Service(l) {
#ifdef STAYS_READY
  ready = suspended;
#else
  ready = false;
#endif
  if
  :: suspended || state != kOpen
  :: else ->
     if
     :: tx && write_end != 0 -> tx = false; RunWriteDone(l)
     :: tx && write_end == 0 && !write_blocked && peer_end == kReset && !reset_told ->
        reset_told = true; write_end = kReset; tx = false; RunWriteDone(l)
     :: tx && write_end == 0 && !write_blocked && (peer_end != kReset || reset_told) && room ->
        tx = false; RunWriteDone(l)
     :: tx && write_end == 0 && !write_blocked && (peer_end != kReset || reset_told) && !room ->
        write_blocked = true;
        if
        :: style == COMPLETION && !armed[OP(l, POLL)] -> Arm(l, POLL)
        :: else
        fi
     :: else
     fi;
     if
     :: read_done && (len(rx) > 0 || read_end != 0) -> RunReadDone(l)
     :: read_done && len(rx) == 0 && read_end == 0 && readable && !armed[OP(l, RECEIVE)] ->
        // Pull
        if
        :: arrived > taken -> taken++; OnReceived(taken); RunReadDone(l)
        :: arrived == taken && peer_end != 0 ->
           TakeEnd(result); OnReceiveEnded(result); result = 0; RunReadDone(l)
        :: else -> readable = false
        fi
     :: else
     fi;
     // Settle
     if
     :: read_done && len(rx) == 0 && read_end == 0 && style == COMPLETION && !readable &&
        !armed[OP(l, RECEIVE)] -> Arm(l, RECEIVE)
     :: len(rx) > 0 && style == COMPLETION -> Cancel(l, RECEIVE)  // StopRead, for a small bound
     :: else
     fi
  fi
}

// --- The connection: moving; src/engine/connection_move.cc ---

inline Ask(dest, engine) {
  asked++;
  waiting++;
  Apply(kAsk);
  to_loop = dest;
  to_style = engine;
  if :: move == kAsked -> deferred = true :: else fi
}

inline ForgetMove() {
  refused = false;
  from = 0; to_loop = 0; to_style = 0; source = 0; source_style = 0
}

inline FinishMove(l) {
  suspended = false;
  if :: waiting > 0 -> CheckCallback(l); waiting = 0 :: else fi;
  ForgetMove();
  ready = true
}

inline Settled(l) {
  Apply(kTaken);
  write_blocked = false;
  FinishMove(l)
}

// The connection ends, and its callbacks run.
inline End(l, status) {
  if :: read_end == 0 -> read_end = status :: else fi;
  if :: write_end == 0 -> write_end = status :: else fi;
  Close(l)
}

inline Close(l) {
  state = kClosing;
  tx = false;
  suspended = false;
  if
  :: move != kAttached -> Apply(kEnd); refused = true; deferred = true
  :: else
  fi;
  Detach(l)
}

// No callback runs any more.
inline TakeCallbacks() {
  read_done = false; write_done = false; waiting = 0;
  deferred = false;
  ForgetMove()
}

inline AttachTo(l, engine) {
  Renew(l);
  style = engine;
  Attach(l)
}

inline Stay(l) {
  AttachTo(l, from);
  if :: ok -> Settled(l) :: else -> End(l, kCancelled) fi
}

inline BeginMove(l) {
  deferred = false;
  if
  :: move == kInTransit -> Proceed(l)
  :: move != kInTransit && (refused || (to_loop == l && to_style == style)) ->
     if :: move == kAsked -> Apply(kEnd) :: else fi;
     FinishMove(l)
  :: else ->
     Apply(kBegin);
     from = style;
     suspended = true;
     Release(l);
     if :: ok -> OnReleased(l) :: else fi
  fi
}

inline OnReleased(l) {
  Apply(kReleased);
  Proceed(l)
}

inline Proceed(l) {
  if
  :: to_loop != l && ready -> deferred = true
  :: to_loop != l && !ready ->
     if
     :: true -> HandOver(l)
     :: true -> Stay(l)  // Layer::MayLeave refuses
     fi
  :: else ->
     AttachTo(l, to_style);
     if :: ok -> Settled(l) :: else -> Stay(l) fi
  fi
}

// The engine gives up telling the kernel.
inline OnNotReleased(l) {
  releasing = false;
  cancels[l] = 0;
  Apply(kTaken);
  write_blocked = false;
  FinishMove(l)
}

inline LeaveLoop(l) {
  Renew(l);
  at = NOWHERE
}

inline HandOver(l) {
  source = l;
  source_style = style;
  LeaveLoop(l);
  SendThere()
}

// Posting to a loop that has gone destroys the task, which sends itself back, or ends.
inline SendThere() {
  if
  :: gone[to_loop] -> SendBack()
  :: !gone[to_loop] && to_loop == A -> mail0!kThere
  :: else -> mail1!kThere
  fi
}

inline SendBack() {
  refused = true;
  if
  :: gone[source] -> EndInTransit()
  :: !gone[source] && source == A -> mail0!kBack
  :: else -> mail1!kBack
  fi
}

inline EndInTransit() {
  Apply(kEnd);
  state = kClosed;
  tx = false;
  suspended = false;
  TakeCallbacks();
  refused = false
}

inline JoinLoop(l, engine) {
  at = l;
  Renew(l);
  style = engine;
  Attach(l);
  if :: !ok -> LeaveLoop(l) :: else fi
}

inline Arrive(l) {
  if
  :: true -> SendBack()  // full, or draining
  :: true ->
     JoinLoop(l, to_style);
     if :: ok -> Settled(l) :: else -> SendBack() fi
  fi
}

inline ComeBack(l) {
  JoinLoop(l, source_style);
  if
  :: ok -> Settled(l)
  :: else -> at = l; End(l, kCancelled)  // Strand
  fi
}

// --- A loop's thread ---

inline OnCompletion(l) {
  if
  :: number != generation[l] || at != l || state == kClosed ->
     assert(result != kData);  // bytes for nobody
     value = 0
  :: else ->
     if
     :: op == CANCEL -> OnCancelled(l)
     :: op == POLL -> OnPoll(l)
     :: else -> OnReceive(l)
     fi
  fi;
  op = 0; target = 0; result = 0; value = 0; more = false; number = 0
}

inline OnCancelled(l) {
  if
  :: result == kDone || !cancelling[OP(l, target)]
  :: else ->
     cancels[l]++;
     if
     :: cancels[l] > CANCELS && !leaving && releasing ->
        cancelling[OP(l, target)] = false;
        OnNotReleased(l)
     :: else -> Submit(l, kCancel, target)
     fi
  fi
}

inline OnPoll(l) {
  Disarm(l, POLL);
  if
  :: leaving || releasing -> Parted(l)
  :: else -> write_blocked = false; ready = true
  fi
}

inline OnReceive(l) {
  if :: !more -> late = cancelling[OP(l, RECEIVE)]; Disarm(l, RECEIVE)
     :: else -> late = cancelling[OP(l, RECEIVE)]
  fi;
  if
  :: leaving
#ifdef DROP_LATE
  :: !leaving && result == kData && late
  :: !leaving && result == kData && !late -> OnReceived(value)
#else
  :: !leaving && result == kData -> OnReceived(value)
#endif
  :: !leaving && (result == kEof || result == kReset) -> OnReceiveEnded(result)
  :: !leaving && result == kNoBuffer -> readable = true
  :: else
  fi;
  late = false;
  if
  :: leaving || releasing -> Parted(l)
  :: else -> ready = true
  fi
}

inline OnEvent(l) {
  if
  :: edge[l] == generation[l] + 1 && at == l && registered[l] && state == kOpen && !releasing ->
     readable = true;
     write_blocked = false;
     ready = true
  :: else
  fi;
  edge[l] = 0
}

// The parcel of a closed connection, and the callbacks of one that has ended.
inline RunEnded(l) {
  deferred = false;
  if :: waiting > 0 -> FinishMove(l) :: else fi;
  refused = false;
  if :: read_done -> CheckCallback(l); read_done = false :: else fi;
  if :: write_done -> CheckCallback(l); write_done = false :: else fi
}

#define HERE(l) (at == l && state == kOpen)
#define ALL_CAME (end_told && wrote && !write_done && waiting == 0 && asked == MOVES)
#define FINISHED (state == kClosed && !deferred && waiting == 0 && !read_done && !write_done)

proctype LoopThread(byte l; chan mail; chan completed) {
  byte op, target, value, number;
  mtype result, way;
  bool more, late, ok;
end:
  do
  // What the kernel has for it.
  :: atomic { nempty(completed) ->
       completed?op,target,result,value,more,number; OnCompletion(l) }
  :: atomic { edge[l] != 0 -> OnEvent(l) }
  // What is to be done.
  :: atomic { at == l && ready && state == kOpen -> Service(l) }
  // A turn comes to all of this; that a hand-over waits for the ready list changes nothing again.
  :: atomic { HERE(l) && deferred && !(move == kInTransit && to_loop != l && ready) -> BeginMove(l) }
  :: atomic { at == l && state != kOpen && (read_done || write_done || deferred) -> RunEnded(l) }
  :: atomic { !gone[l] && nempty(mail) ->
       mail?way;
       if :: way == kThere -> Arrive(l) :: else -> ComeBack(l) fi; way = 0 }
  // What the owner does, whose thread this is.
  :: atomic { HERE(l) && !read_done && !end_told -> read_done = true; ready = ready || !suspended }
  :: atomic { HERE(l) && !wrote -> wrote = true; tx = true; write_done = true;
       ready = ready || !suspended }
  :: atomic { HERE(l) && asked < MOVES && !gone[l] ->
       if
       :: Ask(l, READINESS)
       :: Ask(l, COMPLETION)
#if LOOPS > 1
       :: Ask(1 - l, READINESS)
       :: Ask(1 - l, COMPLETION)
#endif
       fi }
  :: atomic { HERE(l) && ALL_CAME -> TakeCallbacks(); Close(l); deferred = false }
  :: atomic { HERE(l) && !patient -> TakeCallbacks(); Close(l); deferred = false }
  :: atomic { HERE(l) && !patient -> End(l, kCancelled) }  // a deadline; a drain
  // Its end: what is in its mailbox goes back, and what it has is closed.
  :: atomic { mortal && !gone[l] && state != kClosing ->
       gone[l] = true;
       if
       :: mail?way ->
          if :: way == kThere -> SendBack() :: else -> EndInTransit() fi; way = 0
       :: empty(mail)
       fi;
       if
       :: at == l -> TakeCallbacks(); if :: state == kOpen -> Close(l) :: else fi; deferred = false
       :: else
       fi }
  od
}

// --- The kernel ---

proctype Kernel(byte l; chan submitted; chan completed) {
  byte op, number;
  mtype what, how;
end:
  do
  :: atomic { submitted?what,op,number ->
       if
       :: what == kArm ->
          assert(live[OP(l, op)] == 0);  // two receives would reorder
          live[OP(l, op)] = number + 1
       :: what == kCancel && live[OP(l, op)] == number + 1 ->
          if
          :: true ->
             live[OP(l, op)] = 0;
             if
             :: completed!op,0,kCancelled,0,false,number; completed!CANCEL,op,kDone,0,false,number
             :: completed!CANCEL,op,kDone,0,false,number; completed!op,0,kCancelled,0,false,number
             fi
          // Busy; or not found although it lives on, which is the same to us. Not for ever: of one
          // that is closing the engine can only wait.
          :: TROUBLE && !leaving -> troubles++; completed!CANCEL,op,kAlready,0,false,number
          fi
       :: else -> completed!CANCEL,op,kNotFound,0,false,number
       fi;
       what = 0; op = 0; number = 0 }
  :: atomic { live[OP(l, RECEIVE)] != 0 && arrived > taken ->
       taken++;
       number = live[OP(l, RECEIVE)] - 1;
       if
       :: completed!RECEIVE,0,kData,taken,true,number
       :: TROUBLE ->  // a terminal completion with bytes
          troubles++;
          live[OP(l, RECEIVE)] = 0;
          completed!RECEIVE,0,kData,taken,false,number
       fi;
       number = 0 }
  :: atomic { live[OP(l, RECEIVE)] != 0 && arrived > taken && TROUBLE ->
       troubles++;
       completed!RECEIVE,0,kNoBuffer,0,false,live[OP(l, RECEIVE)] - 1;
       live[OP(l, RECEIVE)] = 0 }
  :: atomic { live[OP(l, RECEIVE)] != 0 && arrived == taken && peer_end != 0 ->
       TakeEnd(how);
       completed!RECEIVE,0,how,0,false,live[OP(l, RECEIVE)] - 1;
       live[OP(l, RECEIVE)] = 0;
       how = 0 }
  :: atomic { live[OP(l, POLL)] != 0 && (room || peer_end == kReset) ->
       completed!POLL,0,kRoom,0,false,live[OP(l, POLL)] - 1;
       live[OP(l, POLL)] = 0 }
  od
}

inline RaiseEdges() {
  if :: registered[A] -> edge[A] = generation[A] + 1 :: else fi;
  if :: registered[B] -> edge[B] = generation[B] + 1 :: else fi
}

proctype Peer() {
  do
  :: atomic { arrived < BYTES && peer_end == 0 && state != kClosed -> arrived++; RaiseEdges() }
  :: atomic { arrived == BYTES && peer_end == 0 && state != kClosed -> peer_end = kEof; RaiseEdges() }
  :: atomic { peer_end == 0 && state != kClosed -> peer_end = kReset; RaiseEdges() }
  :: atomic { !room && state != kClosed -> room = true; RaiseEdges() }
  :: FINISHED -> break  // nothing else may end a run
  od
}

#ifdef ENDS
// Every move ends, and is told of, whoever is slow; not only when nothing is left to do.
#define UNDER_WAY (move != kAttached || waiting > 0)
ltl ends { [] (UNDER_WAY -> <> !UNDER_WAY) }
#endif

init {
  atomic {
    c_code { atexit(Report); };
#if ROUGH
    if :: patient = true; mortal = true :: patient = false fi;
#else
    patient = true;
#endif
#if !WRITES
    room = true;
#endif
    if :: style = READINESS :: style = COMPLETION fi;
    has[OP(A, style)] = true;
    registered[A] = (style == READINESS);
    run LoopThread(A, mail0, completed0);
    run Kernel(A, submitted0, completed0);
#if LOOPS > 1
    run LoopThread(B, mail1, completed1);
    run Kernel(B, submitted1, completed1);
#endif
    run Peer()
  }
}
