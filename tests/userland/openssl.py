# OpenSSL's algorithms over fixed data, through libcrypto's EVP functions: every length from a list and odd
# addresses, so that each vector path and its remainder is taken. Prints a line with a hash for each algorithm.
# usage: python3 openssl.py SETTING   (the name of the OPENSSL_ia32cap setting, for the lines)
import ctypes
import sys

setting = sys.argv[1]
quick = sys.argv[2] == "1"
crypto = ctypes.CDLL("libcrypto.so.3")
pointer, size, byte_string, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_int
for name, result, arguments in [
    ("EVP_MD_fetch", pointer, [pointer, byte_string, byte_string]),
    ("EVP_CIPHER_fetch", pointer, [pointer, byte_string, byte_string]),
    ("EVP_Digest", number, [pointer, size, pointer, pointer, pointer, pointer]),
    ("EVP_CIPHER_CTX_new", pointer, []),
    ("EVP_CIPHER_CTX_free", None, [pointer]),
    ("EVP_CIPHER_get_key_length", number, [pointer]),
    ("EVP_CIPHER_get_iv_length", number, [pointer]),
    ("EVP_CipherInit_ex", number, [pointer, pointer, pointer, pointer, pointer, number]),
    ("EVP_CipherUpdate", number, [pointer, pointer, pointer, pointer, number]),
    ("EVP_CipherFinal_ex", number, [pointer, pointer, pointer]),
    ("EVP_CIPHER_CTX_ctrl", number, [pointer, number, number, pointer]),
    ("EVP_PKEY_new_raw_private_key", pointer, [number, pointer, byte_string, size]),
    ("EVP_PKEY_new_raw_public_key", pointer, [number, pointer, byte_string, size]),
    ("EVP_PKEY_get_raw_public_key", number, [pointer, pointer, pointer]),
    ("EVP_MD_CTX_new", pointer, []),
    ("EVP_DigestSignInit", number, [pointer, pointer, pointer, pointer, pointer]),
    ("EVP_DigestSign", number, [pointer, pointer, pointer, pointer, size]),
    ("EVP_DigestVerifyInit", number, [pointer, pointer, pointer, pointer, pointer]),
    ("EVP_DigestVerify", number, [pointer, pointer, size, pointer, size]),
    ("EVP_PKEY_CTX_new", pointer, [pointer, pointer]),
    ("EVP_PKEY_derive_init", number, [pointer]),
    ("EVP_PKEY_derive_set_peer", number, [pointer, pointer]),
    ("EVP_PKEY_derive", number, [pointer, pointer, pointer]),
]:
    function = getattr(crypto, name)
    function.restype, function.argtypes = result, arguments


class Numbers:
    # A multiplicative generator: its bytes are the fixed data. No algorithm under test makes its own input.
    def __init__(self, seed):
        self.state = seed

    def bytes(self, count):
        state, out = self.state, bytearray()
        while len(out) < count:
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            out += (state >> 16).to_bytes(6, "little")
        self.state = state
        return bytes(out[:count])


LENGTHS = [0, 1, 16, 17, 63, 64, 112, 128, 129, 255, 257, 513, 1025, 2049, 8192]
if not quick:
    LENGTHS += [15, 65, 111, 127, 191, 256, 511, 512, 1023, 1024, 1536, 2047, 3072, 4095, 4096, 4097, 8191, 16385, 40001]
data = Numbers(1).bytes(40200)
room = ctypes.create_string_buffer(len(data) + 64)
output = ctypes.create_string_buffer(len(data) + 256)
length = ctypes.c_int()


def place(text, offset):
    ctypes.memmove(ctypes.addressof(room) + offset, text, len(text))
    return ctypes.addressof(room) + offset


def show(algorithm, collected):
    # The remainder is Python's own arithmetic, not a digest under test.
    print(f"{setting} {algorithm} {int.from_bytes(collected, 'little') % (2**127 - 1):032x}")


def digests():
    names = "MD5 SHA1 SHA224 SHA256 SHA384 SHA512 SHA512-256 SHA3-224 SHA3-256 SHA3-384 SHA3-512 SHAKE128 SHAKE256"
    names += " BLAKE2B-512 BLAKE2S-256 SM3 RIPEMD160"
    result, written = ctypes.create_string_buffer(64), ctypes.c_uint()
    for name in names.split():
        method = crypto.EVP_MD_fetch(None, name.encode(), None)
        if not method:
            print(f"{setting} {name} absent")
            continue
        collected = b""
        for index, count in enumerate(LENGTHS):
            at = place(data[:count], index % 17)
            assert crypto.EVP_Digest(at, count, result, ctypes.byref(written), method, None) == 1, name
            collected += result.raw[: written.value]
        show(name, collected)


def run(context, method, key, iv, text, offset, encrypt, tag=None, extra=b""):
    AEAD_GET, AEAD_SET = 0x10, 0x11
    key_place, iv_place = ctypes.create_string_buffer(key), ctypes.create_string_buffer(iv)
    assert crypto.EVP_CipherInit_ex(context, method, None, key_place, iv_place, encrypt) == 1
    if extra:
        assert crypto.EVP_CipherUpdate(context, None, ctypes.byref(length), extra, len(extra)) == 1
    at, total = ctypes.addressof(output) + offset % 7, 0
    # In two unequal parts: XTS takes its data at once.
    parts = [text] if tag is None and b"XTS" in method_name else [text[: len(text) // 3], text[len(text) // 3 :]]
    for part in parts:
        if part:
            assert crypto.EVP_CipherUpdate(context, at + total, ctypes.byref(length), place(part, offset % 13), len(part)) == 1
            total += length.value
    if tag is not None and not encrypt:
        assert crypto.EVP_CIPHER_CTX_ctrl(context, AEAD_SET, 16, tag) == 1
    assert crypto.EVP_CipherFinal_ex(context, at + total, ctypes.byref(length)) == 1, "the tag or the padding is wrong"
    total += length.value
    made = None
    if tag is not None and encrypt:
        assert crypto.EVP_CIPHER_CTX_ctrl(context, AEAD_GET, 16, tag) == 1
        made = tag.raw[:16]
    return ctypes.string_at(at, total), made


def ciphers():
    global method_name
    names = [f"AES-{bits}-{mode}" for bits in (128, 192, 256) for mode in "CBC CTR ECB GCM".split()]
    names += ["AES-128-XTS", "AES-256-XTS", "AES-128-OCB", "AES-256-OCB", "AES-128-CFB", "AES-256-CFB8", "AES-128-OFB"]
    names += ["CHACHA20", "CHACHA20-POLY1305", "CAMELLIA-128-CBC", "CAMELLIA-256-CTR", "ARIA-128-CTR", "SM4-CTR", "DES-EDE3-CBC"]
    numbers = Numbers(2)
    for name in names:
        method_name = name.encode()
        method = crypto.EVP_CIPHER_fetch(None, method_name, None)
        if not method:
            print(f"{setting} {name} absent")
            continue
        aead = any(word in name for word in ("GCM", "OCB", "POLY1305"))
        key = numbers.bytes(crypto.EVP_CIPHER_get_key_length(method))
        iv = numbers.bytes(max(crypto.EVP_CIPHER_get_iv_length(method), 1))
        context = crypto.EVP_CIPHER_CTX_new()
        collected = b""
        for index, count in enumerate(LENGTHS):
            if "XTS" in name and count < 16 or count > 4100 and any(slow in name for slow in ("DES", "CFB8")):
                continue
            text = data[index : index + count]
            tag = ctypes.create_string_buffer(16) if aead else None
            extra = data[100 : 100 + index] if aead else b""
            sealed, made = run(context, method, key, iv, text, index, 1, tag, extra)
            opened, _ = run(context, method, key, iv, sealed, index + 3, 0, tag, extra)
            assert opened == text, f"{name}: {count} bytes are not what they were"
            collected += sealed + (made or b"")
        crypto.EVP_CIPHER_CTX_free(context)
        show(name, collected)


def curves():
    numbers = Numbers(3)
    secret, count = ctypes.create_string_buffer(256), ctypes.c_size_t()
    for name, kind, key_size in [("ED25519", 1087, 32), ("ED448", 1088, 57)]:
        collected = b""
        for round in range(2 if quick else 6):
            key = crypto.EVP_PKEY_new_raw_private_key(kind, None, numbers.bytes(key_size), key_size)
            text = data[: 100 * round]
            context, count.value = crypto.EVP_MD_CTX_new(), 256
            assert crypto.EVP_DigestSignInit(context, None, None, None, key) == 1
            assert crypto.EVP_DigestSign(context, secret, ctypes.byref(count), text, len(text)) == 1
            collected += secret.raw[: count.value]
            context = crypto.EVP_MD_CTX_new()
            assert crypto.EVP_DigestVerifyInit(context, None, None, None, key) == 1
            assert crypto.EVP_DigestVerify(context, secret, count.value, text, len(text)) == 1, name
        show(name, collected)
    for name, kind, key_size in [("X25519", 1034, 32), ("X448", 1035, 56)]:
        collected = b""
        for round in range(2 if quick else 6):
            shared = []
            keys = [crypto.EVP_PKEY_new_raw_private_key(kind, None, numbers.bytes(key_size), key_size) for _ in range(2)]
            for mine, other in (keys, keys[::-1]):
                context, count.value = crypto.EVP_PKEY_CTX_new(mine, None), 256
                assert crypto.EVP_PKEY_derive_init(context) == 1
                assert crypto.EVP_PKEY_derive_set_peer(context, other) == 1
                assert crypto.EVP_PKEY_derive(context, secret, ctypes.byref(count)) == 1
                shared.append(secret.raw[: count.value])
            assert shared[0] == shared[1], name
            collected += shared[0]
        show(name, collected)


digests()
ciphers()
curves()
