// The npm SDKs against a Ringfence server. Run by test_conformance_javascript.py, which sets E2B_API_URL,
// E2B_SANDBOX_URL and E2B_API_KEY.
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'

import {
  CommandExitError, FileNotFoundError, NotFoundError, Sandbox as Plain, Template, TimeoutError, Volume,
} from 'e2b'
import { Sandbox } from '@e2b/code-interpreter'

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

async function eventually(condition) {
  for (let n = 0; n < 400; n++) {
    if (await condition()) return
    await pause(50)
  }
  assert.fail(`never came true: ${condition}`)
}

describe('a sandbox', { concurrency: false }, () => {
  let box
  before(async () => { box = await Sandbox.create('base', { timeoutMs: 120_000, envs: { FOO: 'sandbox' } }) })
  after(async () => { await box.kill() })

  test('code', async () => {
    await box.runCode('x = 20')
    assert.equal((await box.runCode('x + 1')).text, '21')
    const broken = await box.runCode('1 / 0')
    assert.equal(broken.error.name, 'ZeroDivisionError')
    const said = []
    const results = []
    const shown = await box.runCode('print("out"); display(1); 2', {
      onStdout: (message) => { said.push(message.line) },
      onResult: (result) => { results.push(result) },
    })
    assert.deepEqual(said, ['out\n'])
    assert.equal(results.length, 2)
    assert.equal(shown.text, '2')
    const env = await box.runCode('import os; os.environ["BAR"] + os.environ["FOO"]', { envs: { BAR: 'own-' } })
    assert.equal(env.text, 'own-sandbox')
  })

  test('charts and frames', async () => {
    const chart = await box.runCode('import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()')
    assert.ok(chart.results[0].png.length > 100)
    assert.equal(chart.results[0].chart.type, 'line')
    const frame = await box.runCode('import pandas as pd; pd.DataFrame({"a": [1]})')
    assert.deepEqual(frame.results[0].data, { a: [1] })
  })

  test('a cell that takes too long', async () => {
    await assert.rejects(box.runCode('import time; time.sleep(60)', { timeoutMs: 1000 }), TimeoutError)
    assert.equal((await box.runCode('x', { timeoutMs: 20_000 })).text, '20')
  })

  test('contexts', async () => {
    const context = await box.createCodeContext({ cwd: '/tmp' })
    assert.equal((await box.runCode('import os; os.getcwd()', { context })).text, '/tmp')
    assert.ok((await box.listCodeContexts()).some((known) => known.id === context.id))
    await box.restartCodeContext(context)
    await box.removeCodeContext(context)
  })

  test('files', async () => {
    const written = await box.files.write('dir/file.txt', 'žluťoučký')
    assert.deepEqual([written.name, written.path, written.type], ['file.txt', '/home/user/dir/file.txt', 'file'])
    assert.equal(await box.files.read('dir/file.txt'), 'žluťoučký')
    const bytes = new Uint8Array(300_000).map((_, n) => n % 251)
    await box.files.write('bytes', bytes.buffer)
    assert.deepEqual(await box.files.read('bytes', { format: 'bytes' }), bytes)
    await box.files.write('blob', new Blob(['of a ', 'blob']))
    assert.equal(await (await box.files.read('blob', { format: 'blob' })).text(), 'of a blob')
    const several = await box.files.write([{ path: 'm/1', data: 'a' }, { path: 'm/2', data: 'b' }])
    assert.deepEqual(several.map((info) => info.path), ['/home/user/m/1', '/home/user/m/2'])
    assert.deepEqual((await box.files.list('m')).map((entry) => entry.name), ['1', '2'])
    assert.equal((await box.files.getInfo('m/1')).size, 1)
    assert.equal((await box.files.rename('m/1', 'm/3')).name, '3')
    assert.equal(await box.files.exists('m/1'), false)
    assert.equal(await box.files.makeDir('m/deep/er'), true)
    assert.equal(await box.files.makeDir('m/deep/er'), false)
    await box.files.remove('m')
    await assert.rejects(box.files.read('m/3'), FileNotFoundError)
  })

  test('signed addresses', async () => {
    await box.files.write('signed.txt', 'open to whoever has the address')
    const answer = await fetch(await box.downloadUrl('signed.txt', { useSignatureExpiration: 60 }))
    assert.equal(await answer.text(), 'open to whoever has the address')
    const form = new FormData()
    form.append('file', new Blob(['sent']), 'ignored')
    const sent = await fetch(await box.uploadUrl('sent.txt'), { method: 'POST', body: form })
    assert.equal(sent.status, 200)
    assert.equal(await box.files.read('sent.txt'), 'sent')
  })

  test('commands', async () => {
    const result = await box.commands.run('echo out; echo err >&2; echo $FOO; sudo id -un')
    assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['out\nsandbox\nroot\n', 'err\n', 0])
    await assert.rejects(box.commands.run('exit 3'), (error) => {
      assert.ok(error instanceof CommandExitError)
      assert.equal(error.exitCode, 3)
      return true
    })
    await assert.rejects(box.commands.run('sleep 60', { timeoutMs: 1000 }), TimeoutError)
    const handle = await box.commands.run('cat', { background: true, stdin: true })
    await box.commands.sendStdin(handle.pid, 'typed')
    await box.commands.closeStdin(handle.pid)
    assert.equal((await handle.wait()).stdout, 'typed')
    const sleeper = await box.commands.run('sleep 600', { background: true })
    assert.ok((await box.commands.list()).some((process) => process.pid === sleeper.pid))
    const other = await box.commands.connect(sleeper.pid)
    assert.equal(await other.kill(), true)
    await assert.rejects(sleeper.wait(), CommandExitError)
    assert.equal(await box.commands.kill(sleeper.pid), false)
  })

  test('a terminal', async () => {
    let shown = ''
    const decoder = new TextDecoder()
    const terminal = await box.pty.create({
      cols: 80, rows: 24, envs: { ABC: '123' }, onData: (data) => { shown += decoder.decode(data, { stream: true }) },
    })
    const type = (text) => box.pty.sendInput(terminal.pid, new TextEncoder().encode(text))
    await type('echo value-$ABC; stty size\n')
    await eventually(() => shown.includes('value-123') && shown.includes('24 80'))
    await box.pty.resize(terminal.pid, { cols: 133, rows: 50 })
    await type('stty size\n')
    await eventually(() => shown.includes('50 133'))
    await type('exit\n')
    assert.equal((await terminal.wait()).exitCode, 0)
    assert.equal(await box.pty.kill(terminal.pid), false)
  })

  test('watching', async () => {
    await box.files.makeDir('watched')
    const events = []
    const handle = await box.files.watchDir('watched', (event) => { events.push(`${event.type} ${event.name}`) }, {
      recursive: true,
    })
    await box.files.write('watched/new.txt', 'x')
    await eventually(() => events.includes('write new.txt'))
    assert.equal(events[0], 'create new.txt')
    await box.files.makeDir('watched/sub')
    await eventually(() => events.includes('create sub'))
    await box.files.write('watched/sub/inner', 'x')
    await eventually(() => events.includes('write sub/inner'))
    await handle.stop()
    await assert.rejects(box.files.watchDir('nowhere', () => {}), NotFoundError)
  })

  test('git', async () => {
    await box.git.init('/home/user/repo', { initialBranch: 'main' })
    await box.git.configureUser('Someone', 'someone@example.org')
    await box.files.write('/home/user/repo/file', 'x')
    await box.git.add('/home/user/repo')
    await box.git.commit('/home/user/repo', 'First')
    assert.equal((await box.git.status('/home/user/repo')).currentBranch, 'main')
  })

  test('information', async () => {
    assert.equal(await box.isRunning(), true)
    const info = await box.getInfo()
    assert.equal(info.sandboxId, box.sandboxId)
    await box.setTimeout(300_000)
    assert.ok((await box.getInfo()).endAt > info.endAt)
    const again = await Sandbox.connect(box.sandboxId)
    assert.equal((await again.runCode('x')).text, '20')
    assert.match(box.getHost(3000), new RegExp(`^3000-${box.sandboxId}\\.`))
  })
})

test('lists and ends', async () => {
  const mark = `js-${process.pid}`
  const first = await Plain.create('base', { metadata: { mark } })
  const second = await Plain.create('base', { metadata: { mark } })
  const pages = Plain.list({ query: { metadata: { mark } }, limit: 1 })
  assert.deepEqual((await pages.nextItems()).map((info) => info.sandboxId), [second.sandboxId])
  assert.equal(pages.hasNext, true)
  assert.deepEqual((await pages.nextItems()).map((info) => info.sandboxId), [first.sandboxId])
  assert.equal(pages.hasNext, false)

  const running = first.commands.run('sleep 600')
  const ended = assert.rejects(running, /killed or reached its end of life/)
  await pause(500)
  assert.equal(await Plain.kill(first.sandboxId), true)
  await ended
  assert.equal(await first.isRunning(), false)
  assert.equal(await first.kill(), false)
  assert.equal(await second.kill(), true)
})

test('a template', async () => {
  const name = `js-${process.pid}`
  const steps = Template().fromTemplate('base').setEnvs({ WORD: 'built' }).setWorkdir('/srv/js')
    .runCmd('echo "$WORD" > word').setUser('root')
  const lines = []
  const info = await Template.build(steps, name, { onBuildLogs: (entry) => { lines.push(entry.message) } })
  assert.ok(info.templateId)
  assert.ok(lines.length > 0)
  assert.equal(await Template.exists(name), true)
  const box = await Plain.create(name)
  assert.equal((await box.commands.run('whoami; pwd; cat word')).stdout, 'root\n/srv/js\nbuilt\n')
  await box.kill()
  await assert.rejects(Template.build(Template().fromTemplate('base').runCmd('exit 3'), `${name}-x`), /3/)
})

// An ordinary user's server has none unless its operator allows them.
test('a volume', { skip: process.getuid() !== 0 }, async () => {
  const volume = await Volume.create(`js-${process.pid}`)
  try {
    await volume.writeFile('/d/a.txt', 'from outside', { force: true })
    assert.deepEqual((await volume.list('/', { depth: 2 })).map((entry) => entry.path), ['/d', '/d/a.txt'])
    const box = await Plain.create('base', { volumeMounts: { '/mnt/v': volume } })
    assert.equal(await box.files.read('/mnt/v/d/a.txt'), 'from outside')
    await box.files.write('/mnt/v/b', 'from inside')
    await box.kill()
    assert.equal(await volume.readFile('/b'), 'from inside')
    assert.equal((await volume.getInfo('/b')).type, 'file')
    assert.equal((await volume.updateMetadata('/b', { mode: 0o600 })).mode, 0o600)
    await volume.remove('/d')
    assert.equal(await volume.exists('/d'), false)
    await assert.rejects(volume.readFile('/nope'), /not found/)
    assert.ok((await Volume.list()).some((one) => one.volumeId === volume.volumeId))
  } finally {
    assert.equal(await Volume.destroy(volume.volumeId), true)
  }
  assert.equal(await Volume.destroy(volume.volumeId), false)
})
