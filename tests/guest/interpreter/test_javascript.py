"""JavaScript and TypeScript cells in the machine's Node."""

import json
import shutil
from dataclasses import replace

import httpx
import pytest
from e2b.exceptions import SandboxException

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node.js on this machine")


@pytest.fixture
def run(server):
    """Run a cell of JavaScript and return the SDK's execution."""
    sandbox = server.sandbox()
    return lambda code, **options: sandbox.run_code(code, **{"language": "js", **options})


def execute(server, code: str, **fields: object) -> list[dict]:
    with httpx.Client(timeout=60) as client:
        response = client.post(f"{server.url}/execute", json={"code": code, "language": "js", **fields})
    return [json.loads(line) for line in response.text.split("\n") if line]


def errors(events: list[dict]) -> list[dict]:
    return [event for event in events if event["type"] == "error"]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("'Hello, World!'", "Hello, World!"),
        ("""`"quoted"`""", '"quoted"'),
        ("1 + 1", "2"),
        ("null", "null"),
        ("-0", "-0"),
        ("2n ** 70n", "1180591620717411303424n"),
        ("({a: [1, 'b']})", "{ a: [ 1, 'b' ] }"),
        ("async function main() { return 'Hello' }\nawait main()", "Hello"),
        ("Promise.resolve(4)", "4"),
        ("let a = 1; {a + 1}", "2"),
        ("'\\u2028é😀'", "\u2028é😀"),
    ],
)
def test_results(run, code, text):
    execution = run(code)
    assert execution.error is None
    assert execution.text == text


def test_declarations_give_no_result(run):
    assert run("const x = 5; function f() {}").results == []


def test_declarations_can_be_made_again(run):
    run("const x = 1; let y = 1; class Z { v = 1 }; function f() { return 1 }")
    assert run("const x = 2; let y = 2; class Z { v = 2 }; function f() { return 2 }").error is None
    assert run("[x, y, new Z().v, f()]").text == "[ 2, 2, 2, 2 ]"
    assert run("class y { static v = 3 }; let Z = 4; [y.v, Z]").text == "[ 3, 4 ]"


def test_output_streams_and_keeps_its_order(server, run):
    execution = run("console.log('out', {a: 1}); console.error('err'); process.stdout.write('no end')")
    assert "".join(execution.logs.stdout) == "out { a: 1 }\nno end"
    assert "".join(execution.logs.stderr) == "err\n"
    events = execute(server, "console.log(1); display('two'); console.log(3); 'four'")
    kinds = [event["type"] for event in events]
    assert kinds == ["number_of_executions", "stdout", "result", "stdout", "result", "end_of_execution"]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import fs from 'fs'\nfs.existsSync('/')", "true"),
        ("import { basename as b, sep } from 'node:path';\nb('/a/b') + sep", "b/"),
        ("import os, * as all from 'os'; all.EOL === os.EOL", "true"),
        ("import 'node:url'; const u = await import('url'); typeof u.parse", "function"),
        ("import { one } from './one.mjs'; one", "1"),
        ("const { two } = require('./two.cjs'); two", "2"),
        ("import data from './data.json' with { type: 'json' }; data.three", "3"),
        ("import { only } from 'installed'; only", "esm"),
        ("`${await import('os').then((os) => typeof os.cpus)}`", "function"),
        ("import.meta.dirname === process.cwd()", "true"),
        ("import {\n  sep,\n  posix as p\n} from 'path'\n[p.sep, sep].join()", "/,/"),
        ("({import: 1, export: `import x from 'y'`}).import", "1"),
        ("import { one as o } from './one.mjs'; export { o }; export default class {}\n; o", "1"),
        ("export const z = 1; export default function g() { return z + 1 }; g()", "2"),
    ],
)
def test_modules(run, home, code, text):
    (home / "one.mjs").write_text("export const one = 1")
    (home / "two.cjs").write_text("exports.two = 2")
    (home / "data.json").write_text('{"three": 3}')
    package = home / "node_modules/installed"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"type": "module", "exports": {"import": "./index.js"}}')
    (package / "index.js").write_text("export const only = 'esm'")
    execution = run(code)
    assert execution.error is None
    assert "vm." not in "".join(execution.logs.stderr)
    assert execution.text == text


def test_an_import_lasts_and_can_be_made_again(run):
    run("import path from 'node:path'")
    assert run("path.sep").text == "/"
    assert run("import path, { sep } from 'node:path'; const fs = require('fs'); sep").text == "/"


def test_a_missing_package_is_named(run):
    error = run("import isOdd from 'is-odd-not-there'").error
    assert "is-odd-not-there" in error.value
    assert "npm install" in error.value
    assert "nothing" in run("import { nothing } from 'node:path'").error.value


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("function f(a: string): string { return `Hello, ${a}` }\nf('you')", "Hello, you"),
        ("interface P { x: number }\nconst p: P = { x: 1 }; p.x as any", "1"),
        ("enum Colour { Red = 'r' }\nColour.Red", "r"),
        (
            "import type { Stats } from 'fs'; import { statSync } from 'fs'\n"
            "const s: Stats = statSync('/'); typeof s",
            "object",
        ),
        ("const g = <T,>(x: T): T => x; await Promise.resolve<number>(g(7))", "7"),
    ],
)
@pytest.mark.parametrize("language", ["typescript", "ts"])
def test_typescript(run, code, text, language):
    execution = run(code, language=language)
    assert execution.error is None
    assert execution.text == text


def test_typescript_and_javascript_share_a_kernel(run):
    run("const shared: number = 5", language="ts")
    assert run("shared").text == "5"


def test_errors(run):
    error = run("function f() { throw new TypeError('wrong') }\nf()").error
    assert (error.name, error.value) == ("TypeError", "wrong")
    assert "cell-1:1:22" in error.traceback
    assert "ringfence" not in error.traceback
    assert "inspector" not in error.traceback
    error = run("let ok = 1;\nlet = = 2").error
    assert error.name == "SyntaxError"
    assert "let = = 2" in error.traceback
    assert run("throw 'text'").error.value == "'text'"
    error = run("await new Promise((_, no) => setTimeout(() => no(new RangeError('late')), 5))").error
    assert (error.name, error.value) == ("RangeError", "late")
    assert run("JSON.parse('{')").error.name == "SyntaxError"


@pytest.mark.parametrize("thrown", ["{ get message() { throw 1; } }", "{ message: Object.create(null) }"])
def test_an_error_that_cannot_be_described_ends_its_cell(run, thrown):
    assert "cannot be described" in run(f"throw {thrown}", timeout=5).error.value
    assert run("1 + 1").text == "2"


def test_what_nobody_catches_is_told_and_kills_nothing(run):
    run("var kept = 1; setTimeout(() => { throw new Error('in a timer') }, 1)")
    run("Promise.reject(new Error('alone')); 0")
    execution = run("await new Promise((done) => setTimeout(done, 50)); kept")
    assert execution.text == "1"
    run("setTimeout(() => { throw new Error('now') }, 20)")
    execution = run("await new Promise((done) => setTimeout(done, 100))")
    assert "now" in "".join(execution.logs.stderr)


@pytest.mark.parametrize(
    "code",
    [
        "while (true);",
        "await new Promise(() => {})",
        "await 1; await new Promise((done) => setTimeout(done, 1)); while (true);",
        "require('child_process').execSync('sleep 60')",
        "while (true) console.log('x'.repeat(100))",
        "await new Promise((done) => setTimeout(done, 60000))",
    ],
)
def test_time_limit_keeps_the_variables(server, run, code):
    run("var kept = 1")
    [error] = errors(execute(server, code, timeout=0.5))
    assert error["name"] == "TimeoutError"
    assert "kept" in error["value"]
    assert run("kept").text == "1"


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("process.exit(3)", "exited with status 3"),
        ("process.abort()", "SIGABRT"),
        ("process.kill(process.pid, 'SIGTERM'); await new Promise(() => {})", "SIGTERM"),
    ],
)
def test_death_is_told(run, code, how):
    error = run(code).error
    assert error.name == "KernelDied"
    assert how in error.value
    assert run("typeof kept").text == "undefined"


def test_display_and_rich_results(run):
    code = (
        "$$.html('<b>1</b>'); $$.png(Buffer.from('png')); display({_toSvg: () => '<svg/>'}); $$.json({a: 1})"
    )
    html, png, svg, data = run(code).results
    assert html.html == "<b>1</b>"
    assert png.png == "cG5n"
    assert svg.svg == "<svg/>"
    assert data.json == {"a": 1}
    [result] = run("({_toHtml: () => '<i>', _toMime: () => ({'text/markdown': '*'})})").results
    assert (result.html, result.markdown, result.is_main_result) == ("<i>", "*", True)


def test_limits(run):
    execution = run("console.log('x'.repeat(21 * 1024 * 1024)); 'y'.repeat(9 * 1024 * 1024)")
    assert "output limit" in "".join(execution.logs.stderr)
    assert "left out" in execution.text
    assert len(run("throw new Error('z'.repeat(1 << 20))").error.value) < 70_000


def test_environment(run, home):
    assert (
        run("[process.env.FROM_SANDBOX, process.env.ONCE]", envs={"ONCE": "a 'b'"}).text
        == "[ 'yes', \"a 'b'\" ]"
    )
    assert run("process.env.ONCE").results == []
    assert run("process.cwd()").text == str(home)
    assert run("process.argv.length + process.execArgv.length").text == "1"


def test_children_do_not_inherit_the_control_channel(run):
    code = "require('child_process').execSync('ls /proc/self/fd', {encoding: 'utf8'})"
    assert run(code).text.split() == ["0", "1", "2", "3"]


def test_contexts(server):
    sandbox = server.sandbox()
    context = sandbox.create_code_context(language="typescript")
    assert context.language == "typescript"
    sandbox.run_code("const x: number = 1", context=context)
    assert sandbox.run_code("typeof x", language="js").text == "undefined"
    sandbox.restart_code_context(context)
    execution = sandbox.run_code("typeof x", context=context)
    assert (execution.text, execution.execution_count) == ("undefined", 1)
    sandbox.remove_code_context(context)
    assert [listed.language for listed in sandbox.list_code_contexts()] == ["python", "javascript"]


def test_many_interrupts(server, run):
    run("var kept = 0")
    for code in ("while (true);", "await new Promise(() => {})", "for (;;) await 1") * 2:
        [error] = errors(execute(server, f"kept += 1; {code}", timeout=0.2))
        assert error["name"] == "TimeoutError"
    assert run("kept").text == "6"


def test_without_sucrase_it_is_told_what_to_do(new_server, config, tmp_path):
    sandbox = new_server(replace(config, node_modules=str(tmp_path / "none"))).sandbox()
    for language in ("js", "typescript"):
        with pytest.raises(SandboxException, match=r"500.*need Sucrase in .*npm.*start the server again"):
            sandbox.run_code("1", language=language)
        with pytest.raises(SandboxException, match=r"500.*need Sucrase"):
            sandbox.create_code_context(language=language)
    assert [context.language for context in sandbox.list_code_contexts()] == ["python"]
