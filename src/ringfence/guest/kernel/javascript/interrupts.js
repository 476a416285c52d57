// SIGINT stops the running cell, never the kernel, whatever the cell does: waits, or runs without end.
'use strict';

const { Worker } = require('node:worker_threads');

// In a thread of its own. Node gives SIGINT to the innermost script that is run with `breakOnSigint`, of any
// thread: this one waits in such a script, within another, so that there always is one.
// `flags`: how many interrupts came, how many of them the main thread knows of, and one that never changes.
const WATCHER = `
const { workerData, parentPort } = require('node:worker_threads');
const { Session } = require('node:inspector');
const vm = require('node:vm');
const GRACE = 100;
globalThis.flags = new Int32Array(workerData);
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
    parentPort.postMessage(count);
    if (Atomics.wait(flags, 1, count - 1, GRACE) === 'timed-out') stop(count);
  }
};

// The main thread is busy. A session must not stay open: Node's exit would wait for it.
function stop(count) {
  const session = new Session();
  session.connectToMainThread();
  session.post('Runtime.terminateExecution');
  Atomics.wait(flags, 1, count - 1);
  session.disconnect();
}

parentPort.postMessage(0);
for (;;) ended(watch);
`;

// Call `interrupted`, in the main thread, after each SIGINT, when code that ran has been stopped; call `ready`
// once that works.
function watchInterrupts(interrupted, ready) {
  const shared = new SharedArrayBuffer(12);
  const flags = new Int32Array(shared);
  const worker = new Worker(WATCHER, { eval: true, workerData: shared, execArgv: [] });
  worker.on('message', (count) => {
    if (count === 0) {
      worker.unref();
      ready();
      return;
    }
    Atomics.store(flags, 1, count);
    Atomics.notify(flags, 1);
    interrupted();
  });
}

module.exports = { watchInterrupts };
