"""What the `python_executor` tools do. Imported at the first call only: the E2B SDK takes a second to
import.
"""
