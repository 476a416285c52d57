// `import` and `require` in cells: static imports become dynamic ones, types are taken out of TypeScript.
'use strict';

const { createRequire } = require('node:module');
const path = require('node:path');
const { pathToFileURL } = require('node:url');
const vm = require('node:vm');

const IMPORT = '__ringfence_import__';
const AsyncFunction = (async () => {}).constructor;

let typed = false;

function install() {
  const hidden = { configurable: true, enumerable: false, writable: true };
  Object.defineProperty(globalThis, IMPORT, { ...hidden, value: importModule });
  Object.defineProperty(importModule, 'meta', { get: meta });
  const own = (specifier) => here()(specifier);
  own.resolve = (specifier, options) => here().resolve(specifier, options);
  Object.defineProperty(own, 'cache', { get: () => require.cache });
  Object.defineProperty(globalThis, 'require', { ...hidden, value: own });
  const warn = process.emitWarning;
  process.emitWarning = (warning, ...rest) => {
    if (!String(warning).includes('USE_MAIN_CONTEXT_DEFAULT_LOADER')) {
      warn(warning, ...rest); // that the loader below is experimental is nothing a cell could change
    }
  };
}

function base() {
  return path.join(process.cwd(), '[cell].js');
}

function here() {
  return createRequire(base());
}

function meta() {
  const { href } = pathToFileURL(base());
  return { url: href, dirname: process.cwd(), filename: base(), resolve: (name) => here().resolve(name) };
}

// Import for a cell. `names`: what the cell wants of it by name, or undefined for all as a namespace.
async function importModule(specifier, options, names) {
  const module = await fromSomewhere(String(specifier), options);
  if (names === undefined) {
    return module;
  }
  const wanted = {};
  for (const name of names) {
    if (name in module) {
      wanted[name] = module[name];
    } else if (module.default !== null && module.default !== undefined && Object(module.default)[name] !== undefined) {
      wanted[name] = module.default[name]; // of a CommonJS module whose names are not known beforehand
    } else if (!typed) {
      const message = `The requested module '${specifier}' does not provide an export named '${name}'`;
      throw new SyntaxError(message);
    }
  }
  return wanted;
}

// From the working directory, or else from where packages are installed for all.
async function fromSomewhere(specifier, options) {
  let missing;
  const everywhere = (process.env.NODE_PATH || '').split(path.delimiter).filter(Boolean);
  for (const directory of [process.cwd(), ...everywhere.map((folder) => path.dirname(folder))]) {
    try {
      return await importFrom(directory, specifier, options);
    } catch (error) {
      const own = String(error.message).includes(`'${specifier.split('/')[0]}`);
      if (error.code !== 'ERR_MODULE_NOT_FOUND' || !own || /^[./]/.test(specifier)) {
        throw error;
      }
      missing ??= error;
    }
  }
  throw new Error(`Cannot find package '${specifier}': it is not installed here (npm install ${specifier})`, {
    cause: missing.code,
  });
}

function importFrom(directory, specifier, options) {
  const loader = vm.constants && vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER;
  if (!loader) {
    const relative = /^\.{0,2}\//.test(specifier);
    return load.import(relative ? pathToFileURL(path.resolve(directory, specifier)).href : specifier);
  }
  const settings = { filename: path.join(directory, '[cell].js'), importModuleDynamically: loader };
  return vm.compileFunction('return import(specifier, options)', ['specifier', 'options'], settings)(specifier, options);
}

// The cell with its import and export statements made into what a script may have. Throws SyntaxError.
function rewrite(code) {
  typed = false;
  if (!/\b(?:import|export)\b/.test(code)) {
    return code;
  }
  try {
    return rewritten(code);
  } catch {
    return withoutTypes(code, code) ?? code;
  }
}

// The cell as plain JavaScript, or null when it is no TypeScript either, or `tried`, what it was made into before,
// was JavaScript all along.
function withoutTypes(code, tried) {
  if (compiles(tried)) {
    return null;
  }
  let plain;
  try {
    const options = { transforms: ['typescript'], disableESTransforms: true, keepUnusedImports: true };
    plain = rewritten(sucrase('sucrase').transform(code, options).code);
  } catch {
    return null;
  }
  if (!compiles(plain)) {
    return null;
  }
  typed = true;
  return plain;
}

function compiles(code) {
  try {
    return Boolean(new AsyncFunction(code));
  } catch {
    return false;
  }
}

// A module of Sucrase. What an interrupt kept from being loaded to its end is loaded again.
function sucrase(name) {
  const own = createRequire(path.join(packages, '[kernel].js'));
  const directory = path.dirname(path.dirname(own.resolve('sucrase/package.json')));
  for (const [file, module] of Object.entries(own.cache)) {
    if (!module.loaded && file.startsWith(directory)) {
      delete own.cache[file];
    }
  }
  return own(name);
}

function rewritten(code) {
  const { parse } = sucrase('sucrase/dist/parser');
  const { TokenType } = sucrase('sucrase/dist/parser/tokenizer/types');
  const tokens = parse(code, false, false, false).tokens.map((token) => ({
    text: code.slice(token.start, token.end),
    start: token.start,
    end: token.end,
    isImport: token.type === TokenType._import,
    isExport: token.type === TokenType._export,
    isString: token.type === TokenType.string,
  }));
  let done = 0;
  let result = '';
  for (let i = 0; i < tokens.length; i += 1) {
    const change = changeAt(code, tokens, i);
    if (change) {
      const gone = code.slice(tokens[i].start, change.end);
      const lines = '\n'.repeat(gone.split('\n').length - change.text.split('\n').length);
      result += code.slice(done, tokens[i].start) + change.text + lines;
      done = change.end;
      while (i + 1 < tokens.length && tokens[i + 1].start < done) {
        i += 1;
      }
    }
  }
  return result + code.slice(done);
}

// What to put instead of the tokens from `i` on, and where they end; null to leave them.
function changeAt(code, tokens, i) {
  const [token, next] = [tokens[i], tokens[i + 1]];
  if (token.isImport) {
    return next.text === '(' ? { text: IMPORT, end: token.end } : importStatement(code, tokens, i);
  }
  if (token.isExport) {
    return exportStatement(tokens, i);
  }
  const isMeta = token.text === 'import' && next && next.text === '.' && tokens[i + 2].text === 'meta';
  if (isMeta && (i === 0 || tokens[i - 1].text !== '.')) {
    return { text: `${IMPORT}.meta`, end: tokens[i + 2].end };
  }
  return null;
}

function importStatement(code, tokens, start) {
  let i = start + 1;
  const names = [];
  let namespace = null;
  for (; !tokens[i].isString; i += 1) {
    const { text } = tokens[i];
    if (text === '*') {
      namespace = tokens[i + 2].text;
      i += 2;
    } else if (text === '{') {
      i = namedImports(tokens, i + 1, names);
    } else if (text !== ',' && text !== 'from') {
      names.push(['default', text]);
    }
  }
  const specifier = tokens[i].text;
  let { end } = tokens[i];
  let options = 'undefined';
  if (tokens[i + 1] && ['with', 'assert'].includes(tokens[i + 1].text) && tokens[i + 2].text === '{') {
    const from = tokens[i + 2].start;
    for (i += 2; tokens[i].text !== '}'; i += 1);
    end = tokens[i].end;
    options = `{ with: ${code.slice(from, end)} }`;
  }
  const wanted = JSON.stringify(names.map(([name]) => name));
  const pattern = names.map(([name, local]) => `${JSON.stringify(name)}: ${local}`).join(', ');
  if (namespace !== null) {
    const more = pattern ? `, { ${pattern} } = ${namespace}` : '';
    return { text: `const ${namespace} = await ${IMPORT}(${specifier}, ${options})${more};`, end };
  }
  if (!names.length) {
    return { text: `void await ${IMPORT}(${specifier}, ${options});`, end };
  }
  return { text: `const { ${pattern} } = await ${IMPORT}(${specifier}, ${options}, ${wanted});`, end };
}

// Between the braces: adds pairs of exported and local name; returns where the closing one is.
function namedImports(tokens, start, names) {
  let i = start;
  while (tokens[i].text !== '}') {
    const { text } = tokens[i];
    const name = /^['"]/.test(text) ? text.slice(1, -1) : text;
    const renamed = tokens[i + 1].text === 'as';
    names.push([name, renamed ? tokens[i + 2].text : name]);
    i += renamed ? 3 : 1;
    if (tokens[i].text === ',') {
      i += 1;
    }
  }
  return i;
}

function exportStatement(tokens, start) {
  let i = start + 1;
  if (tokens[i].text === 'default') {
    const [what, named] = tokens.slice(i + 1, i + 3).map((token) => token.text);
    const nameless = ['class', 'function'].includes(what) && ['{', '(', 'extends'].includes(named);
    return { text: nameless ? 'void' : '', end: tokens[i].end };
  }
  if (tokens[i].text !== '{' && tokens[i].text !== '*') {
    return { text: '', end: tokens[start].end };
  }
  if (tokens[i].text === '{') {
    for (; tokens[i].text !== '}'; i += 1);
  }
  if (tokens[i].text === '*' || (tokens[i + 1] && tokens[i + 1].text === 'from')) {
    for (; !tokens[i].isString; i += 1);
  }
  return { text: '', end: tokens[i].end };
}

module.exports = { install, rewrite, withoutTypes };
