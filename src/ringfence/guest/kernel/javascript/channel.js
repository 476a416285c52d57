// The kernel's end of the control channel (one JSON object per line), and its two output streams.
'use strict';

const fs = require('node:fs');
const { Writable } = require('node:stream');

const MAX_LINE = 16 * 1024 * 1024;
const pause = new Int32Array(new SharedArrayBuffer(4));

// Do something with a descriptor that may not be ready; wait until it is.
function patiently(action) {
  for (let wait = 0.05; ; wait = Math.min(wait * 2, 5)) {
    try {
      return action();
    } catch (error) {
      if (error.code !== 'EAGAIN') {
        throw error;
      }
      Atomics.wait(pause, 0, 0, wait);
    }
  }
}

function writeAll(fd, data) {
  for (let done = 0; done < data.length; ) {
    done += patiently(() => fs.writeSync(fd, data, done));
  }
}

class Channel {
  constructor(fd) {
    this.fd = fd;
    this.messages = [];
    this.partial = '';
    this.acknowledged = 0;
    this.decoder = new TextDecoder();
  }

  // Messages are ASCII, both ways: what is not stands as an escape of JSON's.
  send(message) {
    const text = JSON.stringify(message).replace(
      /[\u007f-\uffff]/g,
      (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`,
    );
    if (text.length >= MAX_LINE) {
      throw new RangeError(`a message of ${text.length} bytes is longer than the limit of ${MAX_LINE}`);
    }
    writeAll(this.fd, Buffer.from(`${text}\n`, 'latin1'));
  }

  // Send, and wait until the guest has dealt with it, so that what is printed next comes after it.
  exchange(message) {
    this.acknowledged = 0;
    this.send(message);
    const buffer = Buffer.alloc(65536);
    while (!this.acknowledged) {
      const size = patiently(() => fs.readSync(this.fd, buffer));
      if (size === 0) {
        process.exit(0);
      }
      this.feed(buffer.subarray(0, size));
    }
  }

  feed(data) {
    const lines = (this.partial + this.decoder.decode(data, { stream: true })).split('\n');
    this.partial = lines.pop();
    for (const line of lines) {
      const message = JSON.parse(line);
      if (message.op === 'ack') {
        this.acknowledged += 1;
      } else {
        this.messages.push(message);
      }
    }
  }
}

// A stream whose text is in the pipe when write() returns, so that no exit can lose it and it keeps its order
// with results.
class Output extends Writable {
  constructor(fd) {
    super({ decodeStrings: true });
    this.fd = fd;
    this._type = 'pipe';
  }

  _write(chunk, _encoding, callback) {
    try {
      writeAll(this.fd, chunk);
      callback();
    } catch (error) {
      callback(error);
    }
  }

  _destroy(_error, callback) {
    callback(); // the descriptor stays open, as that of a process's own streams does
  }
}

function installStreams() {
  for (const [name, fd] of Object.entries({ stdout: 1, stderr: 2 })) {
    const stream = new Output(fd);
    Object.defineProperty(process, name, { configurable: true, enumerable: true, get: () => stream });
  }
}

module.exports = { Channel, installStreams };
