// SIGINT stops the running cell, never the kernel, whatever the cell does: waits, or runs without end.
'use strict';

const { Worker } = require('node:worker_threads');

// What both threads know: how many interrupts came, how many of them the main thread has dealt with, a number
// that never changes, and what the main thread does.
const [CAME, KNOWN, STATE] = [0, 1, 3];
const [IDLE, RUNNING, STOPPING] = [0, 1, 2];
const LATE = 1000;
const flags = new Int32Array(new SharedArrayBuffer(16));

// In a thread of its own. Node gives SIGINT to the innermost script that is run with `breakOnSigint`, of any
// thread: this one waits in such a script, within another, so that there always is one. A main thread that does
// not answer is busy: its code is terminated, and it is told so.
const WATCHER = `
const { workerData: flags, parentPort } = require('node:worker_threads');
const { Session } = require('node:inspector');
const vm = require('node:vm');
const GRACE = 100;
globalThis.flags = flags;
const wait = new vm.Script('Atomics.wait(flags, 2, 0)');
const watch = new vm.Script('watchForever()');

function ended(script) {
  try {
    script.runInThisContext({ breakOnSigint: true });
  } catch (error) {
    if (error.code !== 'ERR_SCRIPT_EXECUTION_INTERRUPTED') throw error;
  }
}

globalThis.watchForever = () => {
  for (;;) {
    ended(wait);
    const count = Atomics.add(flags, 0, 1) + 1;
    Atomics.notify(flags, 0);
    parentPort.postMessage({ count });
    const late = Atomics.wait(flags, 1, count - 1, GRACE) === 'timed-out';
    if (late && Atomics.compareExchange(flags, 3, 1, 2) === 1) stop(count);
  }
};

// What is terminated may also be that which reads our message, so it is sent until there is an answer. The
// session must not stay open: Node's exit would wait for it.
function stop(count) {
  const session = new Session();
  session.connectToMainThread();
  session.post('Runtime.terminateExecution');
  do parentPort.postMessage({ count, stopped: true });
  while (Atomics.wait(flags, 1, count - 1, GRACE) === 'timed-out');
  session.disconnect();
}

parentPort.postMessage({ count: 0 });
for (;;) ended(watch);
`;

// Call `interrupted`, in the main thread, after each SIGINT that met a cell, when code that ran has been stopped;
// call `ready` once that works.
function watchInterrupts(interrupted, ready) {
  const worker = new Worker(WATCHER, { eval: true, workerData: flags, execArgv: [] });
  worker.on('message', ({ count, stopped }) => {
    if (count === 0) {
      worker.unref();
      ready();
      return;
    }
    const state = Atomics.load(flags, STATE);
    if (count <= Atomics.load(flags, KNOWN) || (state === STOPPING && !stopped)) {
      return;
    }
    const met = stopped || leave();
    Atomics.store(flags, STATE, IDLE);
    deal(count);
    if (met) {
      interrupted();
    }
  });
}

function deal(count) {
  Atomics.store(flags, KNOWN, count);
  Atomics.notify(flags, KNOWN);
}

// The cell is over; whether there was one. When it is about to be terminated, that happens here.
function leave() {
  const before = Atomics.compareExchange(flags, STATE, RUNNING, IDLE);
  const until = Date.now() + LATE;
  while (before === STOPPING && Date.now() < until);
  return before === RUNNING;
}

// A cell begins. `sent`: how many interrupts the guest has sent until now; they were not for this cell.
function enter(sent) {
  for (let came; (came = Atomics.load(flags, CAME)) < sent; ) {
    if (Atomics.wait(flags, CAME, came, LATE) === 'timed-out') {
      break;
    }
  }
  deal(Atomics.load(flags, CAME));
  Atomics.store(flags, STATE, RUNNING);
}

module.exports = { watchInterrupts, enter, leave };
