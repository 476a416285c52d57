"""The promise of the first page: an agent by name runs Python in a sandbox."""

import base64
import os
from typing import Any

from ringfence.agents import load_agent


async def test_the_data_scientist_runs_python(server: Any) -> None:
    environ = {**os.environ, "RINGFENCE_URL": server.url, "RINGFENCE_API_KEY": server.key}
    async with load_agent("data_scientist", environ=environ) as agent:
        code = "import pandas as pd; print('Hello')"
        result = await agent.execute_tool("python_executor", "execute_code", {"code": code})
        assert result.structured["stdout"] == "Hello\n"
        assert not result.is_error
        chart = "import matplotlib.pyplot as plt\nplt.plot(pd.Series([1, 2, 3])); plt.show()"
        drawn = await agent.execute_tool("python_executor", "execute_code", {"code": chart})
        assert drawn.images[0].data.startswith(b"\x89PNG")
        uploaded = {"path": "a.bin", "content_base64": base64.b64encode(b"\0\xff").decode()}
        await agent.execute_tool("python_executor", "upload_file", uploaded)
        fetched = await agent.execute_tool("python_executor", "download_file", {"path": "a.bin"})
        assert fetched.files[0].data == b"\0\xff"
