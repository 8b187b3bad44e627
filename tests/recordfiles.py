"""ArrayRecord files."""

from array_record.python import array_record_module


def write(path, entries, options="group_size:1,uncompressed") -> str:
    """Writes entries, bytes each; returns the path."""
    writer = array_record_module.ArrayRecordWriter(str(path), options)
    for entry in entries:
        writer.write(entry)
    writer.close()
    return str(path)
