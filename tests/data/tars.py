"""Tar files for tests, sound and hostile."""

import io
import tarfile


def tar(*members, **options):
    """Bytes of an archive of (name, bytes) pairs, or of TarInfo records for what is no ordinary file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                archive.addfile(record(member[0], size=len(member[1])), io.BytesIO(member[1]))
    return file.getvalue()


def record(name, **attributes):
    """A header."""
    info = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info
