"""EdgeSDK: compress a Transformer, build it for a board, measure it there, ship what the measurements choose.

    import edgesdk
    built = edgesdk.build(model="my-bert", data="test.csv", target="rpi5", recipe="int8")
    built.document["selected"]
    edgesdk.results()          # every measurement so far, as a pandas DataFrame
"""

from edgesdk.api import build, results
from edgesdk.errors import EdgeSDKError

__all__ = ["EdgeSDKError", "build", "results"]
__version__ = "0.1.0"
