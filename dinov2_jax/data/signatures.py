"""What bytes are that are no image that can be decoded, by how they begin."""

from dinov2_jax.data import containers

CONVERT = "convert it to JPEG or PNG"
DICOM = (
    "a DICOM file; write its pixels as 16-bit PNG or TIFF (pydicom, dcm2img) and set "
    "data.range"
)
_BRANDS = {
    b"avif": f"an AVIF image; install Pillow 11.3 or later, or {CONVERT}",
    b"avis": f"an AVIF sequence; install Pillow 11.3 or later, or {CONVERT}",
    b"crx ": f"a camera's raw file (Canon CR3); {CONVERT}",
    b"jxl ": f"a JPEG XL image; {CONVERT}",
}
_LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF, 0xF7)  # frames of such JPEG, and of JPEG-LS
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# (offset, bytes, what it is); the first that fits counts.
_STARTS: tuple[tuple[int, bytes, str], ...] = (
    (128, b"DICM", DICOM),
    (0, b"\x00\x00\x00\x0cJXL ", f"a JPEG XL image; {CONVERT}"),
    (0, b"\xff\x0a", f"a JPEG XL image; {CONVERT}"),
    (0, b"\x00\x00\x00\x0cjP  ", f"a JPEG 2000 image; {CONVERT}"),
    (0, b"\xff\x4f\xff\x51", f"a JPEG 2000 image; {CONVERT}"),
    (0, b"II\xbc\x01", f"a JPEG XR image; {CONVERT}"),
    (0, b"%PDF", "a PDF document; extract or render its pictures"),
    (0, b"%!PS", f"a PostScript file; {CONVERT}"),
    (0, b"\xc5\xd0\xd3\xc6", f"a PostScript file; {CONVERT}"),
    (0, b"8BPS", f"a Photoshop document; {CONVERT}"),
    (0, b"gimp xcf", f"a GIMP document; {CONVERT}"),
    (0, b"\x00\x00\x01\x00", f"an icon; {CONVERT}"),
    (0, b"DDS ", f"a DDS texture; {CONVERT}"),
    (
        0,
        b"\x76\x2f\x31\x01",
        "an OpenEXR image; write it as float TIFF, set data.range",
    ),
    (0, b"#?RADIANCE", "a Radiance HDR image; write it as float TIFF, set data.range"),
    (0, b"#?RGBE", "a Radiance HDR image; write it as float TIFF, set data.range"),
    (0, b"qoif", f"a QOI image; {CONVERT}"),
    (0, b"P7", f"a PAM image; {CONVERT}"),
    (0, b"IIRO", f"a camera's raw file (Olympus ORF); {CONVERT}"),
    (0, b"IIU\x00", f"a camera's raw file (Panasonic RW2); {CONVERT}"),
    (0, b"FUJIFILMCCD-RAW", f"a camera's raw file (Fujifilm RAF); {CONVERT}"),
    (8, b"AVI ", "a video (AVI); read it as video:PATH"),
    (8, b"WAVE", "a sound file (WAV)"),
    (0, b"\x1a\x45\xdf\xa3", "a video (Matroska or WebM); read it as video:PATH"),
    (0, b"\x00\x00\x01\xba", "a video (MPEG); read it as video:PATH"),
    (0, b"FLV", "a video (Flash); read it as video:PATH"),
    (0, b"ID3", "a sound file (MP3)"),
    (0, b"\x93NUMPY", "a NumPy array; write it as 16-bit PNG or float TIFF"),
    (
        0,
        b"\x00\x05\x16\x07",
        "a macOS AppleDouble file, which holds no pixels; delete it",
    ),
    (0, b"\xd0\xcf\x11\xe0", "an OLE document, such as Thumbs.db, and no image"),
)

# A word of what `containers` calls bytes -> what to do with them.
_ADVICE = {
    "compressed": "unpack it",
    "zip": "unpack it",
    "7-Zip": "unpack it",
    "RAR": "unpack it",
    "tar": "read it as tar:PATH",
    "Parquet": "read it as parquet:PATH",
    "server's error": "download the image again",
    "git lfs": "fetch it by that",
}


def what(data: bytes) -> str:
    """What these bytes are, and what to do with them; "" if that cannot be told."""
    if not any(data):
        return f"{'all zero' if data else 'an empty file'}; copy or download it again"
    if data[4:8] == b"ftyp":
        return _by_brand(data)
    for offset, start, text in _STARTS:
        if data.startswith(start, offset):
            return text
    text = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<") and b"<svg" in text:
        return "an SVG drawing; render it as PNG"
    found = containers.described(data[:512])
    if found in (None, "zeros"):
        return ""
    advice = (text for word, text in _ADVICE.items() if word in found)
    return f"{found}; {next(advice, 'write its images as files')}"


def rare_jpeg(data: bytes) -> str:
    """What kind of JPEG this is, of those that no decoder here knows; else ""."""
    place = 2
    while data[place : place + 1] == b"\xff" and place + 5 <= len(data):
        kind, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if kind in _LOSSLESS:
            return f"a lossless JPEG image, which is not decoded; {CONVERT}"
        if 0xC0 <= kind <= 0xC2 and data[place + 4] != 8:
            bits = data[place + 4]
            return f"a JPEG image of {bits} bits, which is not decoded; {CONVERT}"
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC) or kind == 0xDA:
            return ""
        place += 2 + length
    return ""


def _by_brand(data: bytes) -> str:
    """What a file of ISO boxes is, by its brands: the main one, then the others."""
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[i : i + 4] for i in range(16, size, 4))]
    for brand in brands:
        if brand in _BRANDS:
            return _BRANDS[brand]
    if any(brand in _HEIC for brand in brands):
        return f"a HEIC image; {CONVERT}, for instance by heif-convert IN.heic OUT.jpg"
    return "a video (MP4 or QuickTime); read it as video:PATH"
