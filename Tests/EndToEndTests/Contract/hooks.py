"""What schemathesis can't know of a good client of this API from the document alone."""

import base64
import hashlib
import io
import tarfile
import zipfile

import schemathesis
from hypothesis import strategies as st


def tar_archive(mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        entry = tarfile.TarInfo("notes/plan.md")
        entry.size = 5
        archive.addfile(entry, io.BytesIO(b"plan\n"))
    return buffer.getvalue()


def zip_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("notes/plan.md", "plan\n")
    return buffer.getvalue()


schemathesis.openapi.media_type("application/gzip", st.just(tar_archive("w:gz")))
schemathesis.openapi.media_type("application/x-tar", st.just(tar_archive("w")))
schemathesis.openapi.media_type("application/zip", st.just(zip_archive()))
for media_type in ("application/octet-stream", "application/offset+octet-stream"):
    schemathesis.openapi.media_type(media_type, st.binary(max_size=64))

# Paths in Base64, of names that every file system takes.
schemathesis.openapi.format(
    "base64",
    st.text("abcdefgh", min_size=1, max_size=20).map(lambda text: base64.b64encode(text.encode()).decode()),
)

# Addresses that are well-formed; the server allows none of them.
schemathesis.openapi.format("git-url", st.sampled_from(["https://git.example.org/team/project.git"]))
schemathesis.openapi.format("git-reference", st.sampled_from(["main", "v1.0"]))


@schemathesis.hook
def before_call(context, case, **kwargs):
    """What belongs together: keys and digests to their bodies, a limit to a page, an archive to its format."""
    if case.query and case.query.get("stream") in (True, "true"):
        case.query.pop("limit", None)
    if isinstance(case.body, dict) and "archive" in case.body and not isinstance(case.body["archive"], str):
        case.body["archive"] = tar_archive("w:gz")
    if not case.headers:
        return
    body = case.body if isinstance(case.body, bytes) else repr(case.body).encode()
    digest = hashlib.sha256(body).digest()
    key = case.headers.get("Idempotency-Key")
    # A key is for one request: another body has another one. What isn't a key at all stays so.
    if isinstance(key, str) and 0 < len(key) <= 200 and all("!" <= character <= "~" for character in key):
        case.headers["Idempotency-Key"] = f"{key}-{digest.hex()[:16]}"
    if isinstance(case.body, bytes):
        encoded = base64.b64encode(digest).decode()
        if "Content-Digest" in case.headers:
            case.headers["Content-Digest"] = f"sha-256=:{encoded}:"
        if "Upload-Checksum" in case.headers:
            case.headers["Upload-Checksum"] = f"sha256 {encoded}"
