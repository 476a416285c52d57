// A JavaScript kernel: takes cells from the control channel and runs them one after the other, as V8's own
// REPL does: `const`, `let` and `class` may be declared again, and `await` may stand anywhere.
//
// Everything runs in the main thread, in the process's own global scope. The cells' promises and timers go on
// between cells, and what they print then comes with the next cell.
'use strict';

const { Session } = require('node:inspector');
const { Socket } = require('node:net');
const { setImmediate } = require('node:timers');
const { isPromise, isNativeError } = require('node:util').types;
const { bundleOf, describeError, helpers, isEmpty } = load('display');
const { Channel, installStreams } = load('channel');
const { watchInterrupts, enter, leave } = load('interrupts');
const modules = load('modules');

const channel = new Channel(control);
const session = new Session();
const cells = [];
let count = 0;
let cell = null;

function main() {
  installStreams();
  session.connect();
  modules.install();
  helpers.install((data) => show(data, false));
  process.on('uncaughtException', (error) => complain('Uncaught', error));
  process.on('unhandledRejection', (reason) => complain('Uncaught (in promise)', reason));
  watchInterrupts(interrupted, serve);
}

// The guest may interrupt a cell from when it starts, so nothing is taken before the watcher is there.
function serve() {
  const socket = new Socket({ fd: control, readable: true, writable: false });
  socket.on('data', (data) => {
    channel.feed(data);
    take();
  });
  socket.on('error', () => process.exit(0));
  socket.on('close', () => process.exit(0));
  channel.send({ event: 'ready', pid: process.pid });
}

// The cell begins in a turn of its own: an interrupt ends everything that is on the stack then.
function take() {
  cells.push(...channel.messages.splice(0).filter((message) => message.op === 'execute'));
  if (cell === null && cells.length) {
    const request = cells.shift();
    const { id, env = {}, interrupts = 0 } = request;
    cell = { code: String(request.code), env, id, interrupts, before: {}, number: ++count };
    setImmediate(begin, cell);
  }
}

function begin(current) {
  enter(current.interrupts);
  for (const [name, value] of Object.entries(current.env)) {
    current.before[name] = process.env[name];
    process.env[name] = value;
  }
  channel.exchange({ event: 'started', count: current.number });
  let code;
  try {
    code = modules.rewrite(current.code);
  } catch {
    code = current.code; // V8 says better what is wrong with it
  }
  evaluate(current, code, true);
}

function evaluate(current, code, mayBeTypeScript) {
  const expression = `${code}\n//# sourceURL=cell-${current.number}`;
  const options = { expression, replMode: true, awaitPromise: true, userGesture: false };
  session.post('Runtime.evaluate', options, (failure, answer) => {
    if (current !== cell || (failure && /terminated/.test(failure.message))) {
      return; // interrupted: whoever did that ends the cell
    }
    if (failure) {
      failed(current, new Error('the cell waits for a promise that nothing can settle any more'), null, '');
      return;
    }
    if (!answer.exceptionDetails) {
      withValue(answer.result, (value) => finished(current, value));
      return;
    }
    const details = answer.exceptionDetails;
    withValue(details.exception || answer.result, (error) => {
      if (mayBeTypeScript && isNativeError(error) && error.name === 'SyntaxError') {
        const plain = modules.withoutTypes(current.code, code);
        if (plain !== null) {
          evaluate(current, plain, false);
          return;
        }
      }
      failed(current, error, details, code);
    });
  });
}

// The value itself of what the inspector only describes.
function withValue(remote, use) {
  if (remote.objectId === undefined) {
    use(primitive(remote));
    return;
  }
  const key = Symbol.for('ringfence.value');
  let value;
  globalThis[key] = (given) => {
    value = given;
  };
  const { objectId } = remote;
  const functionDeclaration = `function (value) {
    const key = Symbol.for('ringfence.value'), use = globalThis[key];
    delete globalThis[key];
    use(value);
  }`;
  session.post('Runtime.callFunctionOn', { objectId, functionDeclaration, arguments: [{ objectId }] });
  session.post('Runtime.releaseObject', { objectId });
  use(value);
}

function primitive(remote) {
  const special = remote.unserializableValue;
  if (special === undefined) {
    return remote.subtype === 'null' ? null : remote.value;
  }
  return special.endsWith('n') ? BigInt(special.slice(0, -1)) : Number(special);
}

function finished(current, value) {
  if (isPromise(value)) {
    value.then(
      (settled) => current === cell && finished(current, settled),
      (error) => current === cell && failed(current, error, null, ''),
    );
    return;
  }
  try {
    if (!isEmpty(value)) {
      show(bundleOf(value), true);
    }
  } catch (error) {
    failed(current, error, null, '');
    return;
  }
  end(current);
}

function failed(current, error, details, code) {
  leave();
  channel.exchange({ event: 'error', ...describeError(error, details, code) });
  end(current);
}

function end(current) {
  leave();
  for (const [name, value] of Object.entries(current.before)) {
    if (value === undefined) {
      delete process.env[name];
    } else {
      process.env[name] = value;
    }
  }
  cell = null;
  channel.send({ event: 'done', id: current.id });
  take();
}

// Code that ran has been stopped; a cell that only waits is let go of.
function interrupted() {
  if (cell !== null) {
    const value = 'the cell was interrupted';
    channel.exchange({ event: 'error', name: 'KeyboardInterrupt', value, traceback: '' });
    end(cell);
  }
}

function show(data, isMain) {
  const message = { event: 'display', data, main: isMain };
  if (cell !== null) {
    channel.exchange(message);
  } else {
    channel.send({ ...message, ack: false });
  }
}

function complain(what, error) {
  const { name, value, traceback } = describeError(error, null, '');
  process.stderr.write(`${what} ${traceback || `${name}: ${value}`}\n`);
}

main();
