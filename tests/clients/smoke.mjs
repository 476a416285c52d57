// The TypeScript SDKs (v1 and v2) as clients: list the tools, run code, see an error and a progress message.
// Usage: node smoke.mjs v1|v2 http URL  |  node smoke.mjs v1|v2 stdio COMMAND ARG…
const [generation, transport, target, ...args] = process.argv.slice(2);

async function load() {
  if (generation === "v1") {
    const { Client } = await import("@modelcontextprotocol/sdk/client/index.js");
    const { StdioClientTransport } = await import("@modelcontextprotocol/sdk/client/stdio.js");
    const { StreamableHTTPClientTransport } = await import("@modelcontextprotocol/sdk/client/streamableHttp.js");
    return { Client, StdioClientTransport, StreamableHTTPClientTransport };
  }
  const { Client, StreamableHTTPClientTransport } = await import("@modelcontextprotocol/client");
  const { StdioClientTransport } = await import("@modelcontextprotocol/client/stdio");
  return { Client, StdioClientTransport, StreamableHTTPClientTransport };
}

function check(condition, what) {
  if (!condition) throw new Error(`not so: ${what}`);
}

const { Client, StdioClientTransport, StreamableHTTPClientTransport } = await load();
const client = new Client({ name: "smoke", version: "1.0.0" });
await client.connect(
  transport === "http"
    ? new StreamableHTTPClientTransport(new URL(target))
    : new StdioClientTransport({ command: target, args, env: process.env }),
);
const call = (params, options) =>
  generation === "v1" ? client.callTool(params, undefined, options) : client.callTool(params, options);
const { tools } = await client.listTools();
check(tools[0].name === "execute_code", "the first tool is execute_code");

const messages = [];
const options = { timeout: 300_000, onprogress: (progress) => messages.push(progress.message) };
const code = "import time\nfor n in range(3):\n    print('step', n, flush=True); time.sleep(0.7)\n6 * 7";
const ran = await call({ name: "execute_code", arguments: { code } }, options);
check(ran.content[0].text.includes("result:\n42"), `the answer is 42: ${ran.content[0].text}`);
check(messages.some((message) => message?.includes("step")), "progress carries the output");
const session_id = ran.structuredContent.session_id;
const chart = "import matplotlib.pyplot as plt; plt.plot([1, 3, 2]); plt.show()";
const drawn = await call({ name: "execute_code", arguments: { code: chart, session_id } }, options);
check(drawn.content[1]?.type === "image", "a chart is an image");
const failed = await call({ name: "execute_code", arguments: { code: "1 / 0", session_id } }, options);
check(!failed.isError && failed.content[0].text.includes("ZeroDivisionError"), "an exception is a result");
const unknown = await call({ name: "execute_code", arguments: { code: "1", session_id: "s_0" } }, options);
check(unknown.isError, "an unknown session is an error");
await client.close();
console.log("ok");
process.exit(0);
