// What a cell shows: values as MIME bundles, errors as name, message and trace, all within limits.
'use strict';

const { inspect } = require('node:util');

const MAX_PART = 8 * 1024 * 1024;
const MAX_BUNDLE = 12 * 1024 * 1024;
const MAX_VALUE = 64 * 1024;
const MAX_TRACE = 256 * 1024;
const OMITTED = 'application/vnd.ringfence.omitted+json';

// As in ijavascript: an object may say itself how it is shown.
const METHODS = {
  _toHtml: 'text/html',
  _toSvg: 'image/svg+xml',
  _toPng: 'image/png',
  _toJpeg: 'image/jpeg',
};
const KINDS = { text: 'text/plain', html: 'text/html', svg: 'image/svg+xml', png: 'image/png', jpeg: 'image/jpeg' };

class Bundle {
  constructor(data) {
    this.data = data;
  }
}

function isEmpty(value) {
  return value === undefined;
}

// The MIME bundle of a value.
function bundleOf(value) {
  if (value instanceof Bundle) {
    return fit(value.data);
  }
  const data = { 'text/plain': textOf(value) };
  if (value !== null && typeof value === 'object') {
    if (typeof value._toMime === 'function') {
      Object.assign(data, value._toMime());
    }
    for (const [method, mime] of Object.entries(METHODS)) {
      if (typeof value[method] === 'function') {
        data[mime] = value[method]();
      }
    }
  }
  return fit(data);
}

// A string as it is. The guest takes one layer of quotes away: a string that has its own gets one more.
function textOf(value) {
  if (typeof value !== 'string') {
    return inspect(value);
  }
  const quoted = value.length > 1 && value.at(0) === value.at(-1) && (value[0] === "'" || value[0] === '"');
  return quoted ? `${value[0]}${value}${value[0]}` : value;
}

// `data` within the limits, images as base64; what had to be left out is named in a part of its own.
function fit(data) {
  const kept = {};
  const omitted = {};
  let used = 0;
  for (const [mime, value] of Object.entries(data)) {
    const part = partOf(mime, value);
    const size = part === null ? 0 : (typeof part === 'string' ? part : JSON.stringify(part)).length;
    if (size > MAX_PART || used + size > MAX_BUNDLE || weight(part) > MAX_BUNDLE) {
      omitted[mime] = `${size} characters, the limit is ${MAX_PART} each and ${MAX_BUNDLE} together`;
      if (mime === 'text/plain') {
        kept[mime] = `${part.slice(0, MAX_VALUE)}\n… [${size - MAX_VALUE} more characters left out]`;
      }
    } else if (part !== null) {
      kept[mime] = part;
      used += size;
    }
  }
  if (Object.keys(omitted).length) {
    kept[OMITTED] = omitted;
    kept['text/plain'] ??= Object.entries(omitted).map(([mime, why]) => `${mime} left out: ${why}`).join('; ');
  }
  return kept;
}

// How long a string is once characters outside ASCII are escaped; nothing else is counted.
function weight(part) {
  if (typeof part !== 'string' || part.length < MAX_BUNDLE / 6) {
    return 0;
  }
  let escaped = 0;
  for (let i = 0; i < part.length; i += 1) {
    escaped += part.charCodeAt(i) > 126 || part.charCodeAt(i) < 32 ? 6 : 1;
  }
  return escaped;
}

function partOf(mime, value) {
  if (value === null || value === undefined) {
    return null;
  }
  if (value instanceof Uint8Array) {
    return Buffer.from(value).toString(mime.startsWith('image/svg') ? 'utf8' : 'base64');
  }
  if (typeof value === 'object' && (mime === 'application/json' || mime.endsWith('+json'))) {
    return JSON.parse(JSON.stringify(value));
  }
  return String(value);
}

// Name, message and trace of what was thrown. `details`: the inspector's, for where a syntax error is.
// Of an error, whatever it is: one that throws when it is looked at must not keep its cell from ending.
function describeError(error, details, code) {
  try {
    return describe(error, details, code);
  } catch {
    return { name: 'Error', value: 'what was thrown cannot be described', traceback: '' };
  }
}

function describe(error, details, code) {
  const isError = error !== null && typeof error === 'object' && 'message' in error;
  const name = isError ? String(error.name || 'Error') : 'Error';
  const value = isError ? String(error.message) : inspect(error);
  let trace = isError ? inspect(error) : `Uncaught ${value}`;
  if (details && name === 'SyntaxError' && details.scriptId !== undefined) {
    trace = `${whereIs(details, code)}${name}: ${value}`;
  }
  return { name: shorten(name, 256), value: shorten(value, MAX_VALUE), traceback: shorten(withoutOwn(trace), MAX_TRACE) };
}

function whereIs(details, code) {
  const line = code.split('\n')[details.lineNumber];
  return line === undefined ? '' : `${line}\n${' '.repeat(details.columnNumber)}^\n`;
}

function withoutOwn(trace) {
  const own = /^\s+at .*(?:ringfence:|node:inspector|node:internal\/(?:timers|process|vm))/;
  return trace.split('\n').filter((line) => !own.test(line)).join('\n');
}

function shorten(text, limit) {
  if (text.length <= limit) {
    return text;
  }
  const half = limit / 2;
  return `${text.slice(0, half)}\n… [${text.length - limit} characters left out] …\n${text.slice(-half)}`;
}

// `display(value)` and ijavascript's `$$.html(text)`, `$$.png(base64)` …, `$$.mime(bundle)`.
const helpers = {
  install(show) {
    const define = (name, value) =>
      Object.defineProperty(globalThis, name, { configurable: true, enumerable: false, writable: true, value });
    define('display', (...values) => values.forEach((value) => show(bundleOf(value))));
    const session = {
      mime: (data) => show(fit(data)),
      json: (value) => show(fit({ 'text/plain': textOf(value), 'application/json': value })),
      display: (value) => show(bundleOf(value)),
    };
    for (const [kind, mime] of Object.entries(KINDS)) {
      session[kind] = (value) => show(fit({ [mime]: value }));
    }
    define('$$', session);
  },
};

module.exports = { bundleOf, describeError, helpers, isEmpty };
