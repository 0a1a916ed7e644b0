"""``/v1/files``: what clients upload for batches, and what batches leave for them.

Bodies lie in the state directory, one file each, and are written and read in pieces; what is known of them is a table
in SQLite, shared by all frontend processes of the machine. `dynamo.frontend.batches` reads and writes the same files.
"""

from dynamo.frontend.files.endpoint import Files
from dynamo.frontend.files.record import FileRecord
from dynamo.frontend.files.space import FileSpace

__all__ = ["FileRecord", "FileSpace", "Files"]
