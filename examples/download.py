"""Download a file: with a progress bar, going on where an earlier attempt stopped, under its name only when it is whole.

The server must say what it has (an ETag or a Last-Modified header) for a download to go on later; when the file has
changed meanwhile, or the server knows no ranges, it starts anew.
"""

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.request

from tqdm import tqdm

BLOCK = 1 << 16
NAMES = {"md5": "MD5", "sha256": "SHA-256"}


class DownloadError(ValueError):
    """A file that could not be had; the message names its address."""


def download(url, target, checksum=None, timeout=30):
    """Bring `url` to the file `target`, which is left as it is when it is there already; returns `target`.

    What an interrupted download has so far stays beside it, as NAME.part and NAME.part.json. A connection that breaks
    is taken up again as long as that brings more of the file.

    Args:
        checksum: (name, hexadecimal digits) with a name of `hashlib`, for example ("sha256", "731c..."), or None.
        timeout: seconds without a single byte after which the connection counts as broken.

    Raises:
        DownloadError: the server cannot be reached or refuses; the file stays short, or is not the one expected.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(target.parent):
            if not target.exists():
                part = _Part(url, target)
                try:
                    _fetch_all(url, part, timeout)
                    if checksum is not None:
                        _check(url, part, *checksum)
                    os.replace(part.path, target)
                finally:
                    part.tidy()
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"could not download {url}: {error or type(error).__name__}") from error
    return target


def digest_of(path, name):
    """Hexadecimal digest of a file."""
    digest = hashlib.new(name)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _alone_in(folder):
    """Wait until no other process downloads into `folder`: two would write into one NAME.part."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class _Part:
    """The beginning of a download: its bytes, and what the server said the whole file was."""

    def __init__(self, url, target):
        self.url = url
        self.name = target.name
        self.path = target.with_name(f"{target.name}.part")
        self.note = target.with_name(f"{target.name}.part.json")
        self.validators, self.whole = {}, None  # headers as in `_validators`; bytes, None: not known
        try:
            note = json.loads(self.note.read_text())
            if note["url"] == url and self.path.exists():
                self.validators, self.whole = dict(note["validators"]), int(note["bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # no note, or none of ours: it starts anew

    @property
    def size(self):
        """Bytes that a download can go on from."""
        return self.path.stat().st_size if self.validators else 0

    def start_anew(self, validators, whole):
        self.note.unlink(missing_ok=True)  # first: a note must never stand beside the bytes of another file
        self.path.write_bytes(b"")
        # without a length there is no telling a broken connection from the end
        self.validators, self.whole = {} if whole is None else validators, whole
        if self.validators:
            self.note.write_text(json.dumps({"url": self.url, "validators": validators, "bytes": whole}))

    def tidy(self):
        """Remove what no later download could go on from."""
        if not (self.validators and self.path.exists()):
            self.note.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)

    def discard(self):
        self.validators = {}
        self.tidy()


def _fetch_all(url, part, timeout):
    """Requests until the file is whole; one that ends early and brought nothing new is the last."""
    reached = part.size
    while not reached or reached != part.whole:  # it may have been stopped just after the last byte
        _fetch(url, part, timeout)
        got = part.path.stat().st_size
        if part.whole is None or got == part.whole:
            return
        if got > part.whole:
            part.discard()
            raise OSError(f"the server sent {got} bytes of a file of {part.whole}")
        if part.size <= reached:
            raise OSError(f"the connection broke after {got} of {part.whole} bytes")
        reached = part.size


def _fetch(url, part, timeout):
    """One request for what is missing, or for everything."""
    headers = {}
    if start := part.size:
        headers = {
            "Range": f"bytes={start}-",
            "If-Range": part.validators.get("ETag") or part.validators["Last-Modified"],
        }
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416 or not start:
            raise
        part.discard()  # the file has become shorter than what is here
        return _fetch(url, part, timeout)
    with response:
        if response.status == 206:
            # a server that knows no If-Range sends the end of another file, too
            if not _continues(response, part, start):
                if not start:
                    raise OSError("the server sent a part of the file when asked for all of it")
                part.discard()
                return _fetch(url, part, timeout)
        else:
            length = response.headers.get("Content-Length")
            part.start_anew(_validators(response), None if length is None else int(length))
        _append(response, part)


def _continues(response, part, start):
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    return span and (int(span[1]), int(span[2])) == (start, part.whole) and _validators(response) == part.validators


def _validators(response):
    """The headers that tell one state of the file from another. A weak ETag (W/) does not promise equal bytes."""
    found = {name: response.headers[name] for name in ("ETag", "Last-Modified") if name in response.headers}
    return {name: value for name, value in found.items() if not value.startswith("W/")}


def _append(response, part):
    options = {"unit": "B", "unit_scale": True, "desc": f"downloading {part.name}", "disable": None}
    bar = tqdm(total=part.whole, initial=part.path.stat().st_size, **options)
    with open(part.path, "ab") as file, bar:
        while True:
            try:
                block = response.read(BLOCK)
            except (ConnectionError, TimeoutError, http.client.IncompleteRead):
                if part.whole is None:
                    raise
                return  # the caller sees that bytes are missing
            if not block:
                return
            file.write(block)
            bar.update(len(block))


def _check(url, part, name, expected):
    found = digest_of(part.path, name)
    if found != expected:
        part.discard()
        raise DownloadError(f"{url}: the download's {NAMES.get(name, name)} is {found}, expected {expected}")
