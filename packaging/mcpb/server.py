"""What the bundle's manifest names as its entry point; the same as ``ringfence mcp``."""

from ringfence.integrations.mcp.servers.python_executor_server import main

if __name__ == "__main__":
    main()
