# glibc's functions on random sizes, alignments and places near the ends of pages (the page behind is not there), and
# libm's on random bits. Prints for each function a checksum of all that it returned and wrote.
# usage: python3 strings.py SETTING QUICK   (SETTING: a name for the lines; QUICK: 0 or 1)
import binascii
import ctypes
import random
import struct
import sys

setting, quick = sys.argv[1], sys.argv[2] == "1"
libc, libm = ctypes.CDLL("libc.so.6"), ctypes.CDLL("libm.so.6")
PAGE, PAGES = 4096, 12
word, size = ctypes.c_ssize_t, ctypes.c_size_t
libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, size, word, word, word, word]
libc.mprotect.argtypes = [ctypes.c_void_p, size, ctypes.c_int]


def arena(pages):
    # Readable pages between two that are not.
    base = libc.mmap(None, (pages + 2) * PAGE, 3, 0x22, -1, 0)
    assert libc.mprotect(base, PAGE, 0) == 0 and libc.mprotect(base + (pages + 1) * PAGE, PAGE, 0) == 0
    return base + PAGE


def function(name, result, count):
    f = ctypes.CFUNCTYPE(result, *[word] * count)((name, libc))
    f.name = name
    return f


source, target = arena(PAGES), arena(PAGES)
numbers = random.Random(20)
noise = numbers.randbytes(PAGES * PAGE)
letters = bytes(33 + byte % 90 for byte in noise)
rounds = 20 if quick else 80


def put(address, text):
    ctypes.memmove(address, text, len(text))


def some_size(largest):
    return min(int(2 ** numbers.uniform(0, 15)) - 1, largest)


def some_place(base, count):
    # At a page's end, at the arena's end, or anywhere.
    room = PAGES * PAGE - count
    kind = numbers.random()
    if kind < 0.4:
        return base + room - (numbers.randrange(0, 3) if room > 3 else 0)
    if kind < 0.7:
        return base + max(0, min(room, PAGE * numbers.randrange(1, PAGES) - numbers.randrange(0, 70)))
    return base + numbers.randrange(0, room + 1)


def sign(value):
    return (value > 0) - (value < 0)


def report(name, collected):
    print(setting, name, len(collected), f"{binascii.crc32(repr(collected).encode()):08x}")


def memory():
    for name in "memcpy memmove mempcpy".split():
        call, collected = function(name, word, 3), []
        put(source, noise)
        for _ in range(rounds):
            count = some_size(40000)
            to, at = some_place(target, count), some_place(source, count)
            libc.memset(ctypes.c_void_p(target), 90, size(PAGES * PAGE))
            collected.append(call(to, at, count) - to)
            collected.append(binascii.crc32(ctypes.string_at(target, PAGES * PAGE)))
        report(name, collected)
    call, collected = function("memmove", word, 3), []
    for _ in range(rounds):
        # Overlapping, both ways.
        put(target, noise)
        count = some_size(20000)
        at = some_place(target, count)
        to = min(max(at + numbers.randrange(-300, 300), target), target + PAGES * PAGE - count)
        call(to, at, count)
        collected.append(binascii.crc32(ctypes.string_at(target, PAGES * PAGE)))
    report("memmove-overlapping", collected)
    call, collected = function("memset", word, 3), []
    for _ in range(rounds):
        put(target, noise)
        count = some_size(40000)
        call(some_place(target, count), numbers.randrange(256), count)
        collected.append(binascii.crc32(ctypes.string_at(target, PAGES * PAGE)))
    report("memset", collected)
    for name in "memchr memrchr rawmemchr".split():
        call, collected = function(name, word, 2 if name == "rawmemchr" else 3), []
        for _ in range(rounds):
            count = some_size(9000) + 1
            at = some_place(source, count)
            put(at, b"a" * count)
            hit = numbers.randrange(count)
            if name == "rawmemchr" or numbers.random() < 0.8:
                put(at + hit, b"Z")
            found = call(at, 90) if name == "rawmemchr" else call(at, 90, count)
            collected.append(found and found - at)
        report(name, collected)
    for name in "memcmp bcmp strncmp strncasecmp".split():
        call, collected = function(name, ctypes.c_int, 3), []
        for _ in range(rounds):
            count = some_size(9000)
            one, other = some_place(source, count), some_place(target, count)
            put(one, letters[:count])
            put(other, letters[:count])
            if count and numbers.random() < 0.8:
                put(other + numbers.randrange(count), bytes([numbers.randrange(33, 127)]))
            result = call(one, other, count)
            collected.append(bool(result) if name == "bcmp" else sign(result))
        report(name, collected)


def text():
    for name, kind in [
        ("strlen", "length"), ("strnlen", "bounded"), ("strchr", "search"), ("strchrnul", "search"), ("strrchr", "search"),
        ("index", "search"), ("strcpy", "copy"), ("stpcpy", "copy"), ("strcat", "copy"), ("strncpy", "copy-bounded"),
        ("stpncpy", "copy-bounded"), ("strncat", "copy-bounded"), ("strcmp", "compare"), ("strcasecmp", "compare"),
        ("strcoll", "compare"), ("strspn", "set"), ("strcspn", "set"), ("strpbrk", "set"), ("strstr", "find"),
        ("strcasestr", "find"),
    ]:
        result = ctypes.c_int if kind == "compare" else word
        call, collected = function(name, result, {"length": 1, "copy-bounded": 3}.get(kind, 2)), []
        for _ in range(rounds):
            count = some_size(6000)
            at = some_place(source, count + 1)
            put(at, letters[count : 2 * count] + b"\0")
            if kind == "length":
                value = call(at)
            elif kind == "bounded":
                value = call(at, numbers.choice([count, count + 1, count // 2, 2**62]))
            elif kind == "search":
                put(at + numbers.randrange(count + 1), b"\x80" if count and numbers.random() < 0.8 else b"\0")
                put(at + count, b"\0")
                value = call(at, numbers.choice([0x80, 0, 0x81]))
                value = value and value - at
            elif "copy" in kind:
                put(target, b"Q" * PAGE * PAGES)
                to = some_place(target, 2 * count + 12)
                put(to, b"start\0")
                bound = [numbers.choice([count, count // 2, count + 6])] if kind == "copy-bounded" else []
                value = (call(to, at, *bound) - to, binascii.crc32(ctypes.string_at(target, PAGES * PAGE)))
            elif kind == "compare":
                other = some_place(target, count + 1)
                put(other, letters[count : 2 * count] + b"\0")
                if count and numbers.random() < 0.8:
                    put(other + numbers.randrange(count), bytes([numbers.randrange(33, 255)]))
                value = sign(call(at, other))
            elif kind == "set":
                wanted = bytes(numbers.sample(range(33, 123), numbers.randrange(0, 60))) + b"\0"
                put(at, bytes(wanted[i % max(1, len(wanted) - 1)] for i in range(count)) if name == "strspn" and len(wanted) > 1 else b"~" * count)
                put(at + numbers.randrange(count + 1), b"\0" if numbers.random() < 0.3 else wanted[:1])
                put(at + count, b"\0")
                other = some_place(target, len(wanted))
                put(other, wanted)
                value = call(at, other)
                value = value - at if name == "strpbrk" and value else value
            else:
                start = numbers.randrange(count + 1)
                needle = ctypes.string_at(at, count)[start : start + numbers.randrange(0, 40)] + b"\0"
                other = some_place(target, len(needle))
                put(other, needle)
                value = call(at, other)
                value = value and value - at
            collected.append(value)
        report(name, collected)


def wide():
    for name, count_of in [("wcslen", 1), ("wcsnlen", 2), ("wcschr", 2), ("wcsrchr", 2), ("wmemchr", 3), ("wcscmp", 2),
                           ("wmemcmp", 3), ("wcsncmp", 3), ("wmemset", 3), ("wcscpy", 2)]:
        result = ctypes.c_int if "cmp" in name else word
        call, collected = function(name, result, count_of), []
        for _ in range(rounds):
            count = some_size(2000)
            def put_wide(base, hit):
                values = [1000 + i % 77 for i in range(count)] + [0]
                if count and hit < count:
                    values[hit] = 5
                at = some_place(base, 4 * count + 16) // 4 * 4
                put(at, struct.pack(f"<{count + 1}i", *values))
                return at
            hit = numbers.randrange(count + 3)
            at = put_wide(source, hit)
            if "cmp" in name:
                other = put_wide(target, hit if numbers.random() < 0.5 else numbers.randrange(count + 3))
                value = sign(call(at, other, *[count] * (count_of - 2)))
            elif name == "wmemset":
                call(at, 7, count)
                value = binascii.crc32(ctypes.string_at(at, 4 * count))
            elif name == "wcscpy":
                put(target, b"Q" * PAGE * PAGES)
                call(target + 4 * (hit % 20), at)
                value = binascii.crc32(ctypes.string_at(target, PAGE * PAGES))
            elif "chr" in name:
                value = call(at, numbers.choice([5, 0, 1003, -1]), *[count] * (count_of - 2))
                value = value and value - at
            else:
                value = call(at, *[numbers.choice([count, count // 2, count + 1])] * (count_of - 1))
            collected.append(value)
        report(name, collected)


def mathematics():
    double, single = ctypes.c_double, ctypes.c_float
    bits = [numbers.getrandbits(64) for _ in range(rounds)]
    values = [struct.unpack("<d", struct.pack("<Q", b))[0] for b in bits]
    values += [numbers.uniform(-10, 10) for _ in range(2 * rounds)] + [numbers.uniform(-1, 1) for _ in range(rounds)]
    values += [numbers.uniform(-1e6, 1e6) for _ in range(rounds)] + [0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf"), 5e-324, 709.8]
    pairs = [(a, numbers.choice(values)) for a in values]
    one = "sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh exp exp2 exp10 expm1 log log2 log10 log1p sqrt cbrt erf erfc"
    one += " lgamma tgamma j0 y1 floor ceil trunc rint nearbyint round roundeven logb significand fabs"
    two = "pow atan2 fmod remainder hypot fdim fmax fmin copysign nextafter drem"
    for suffix, kind, code in [("", double, "<d"), ("f", single, "<f")]:
        for name, count in [(n, 1) for n in one.split()] + [(n, 2) for n in two.split()]:
            if quick and suffix and name not in ("sin", "cos", "exp", "log", "pow", "rint", "floor"):
                continue
            f = getattr(libm, name + suffix)
            f.restype, f.argtypes = kind, [kind] * count
            collected = b"".join(struct.pack(code, f(*pair[:count])) for pair in pairs)
            print(setting, name + suffix, f"{binascii.crc32(collected):08x}")
    f = libm.fma
    f.restype, f.argtypes = double, [double] * 3
    report("fma", [struct.pack("<d", f(a, b, values[i // 2])) for i, (a, b) in enumerate(pairs)])
    libm.sincos.argtypes, libm.sincos.restype = [double, ctypes.POINTER(double), ctypes.POINTER(double)], None
    sine, cosine, collected = double(), double(), []
    for value in values:
        libm.sincos(value, ctypes.byref(sine), ctypes.byref(cosine))
        collected.append(struct.pack("<dd", sine.value, cosine.value))
    report("sincos", collected)
    # Rounding towards minus, plus, zero: the same functions take other roads.
    for mode in (0x400, 0x800, 0xC00):
        for name in "sin exp log pow rint sqrt nearbyint".split():
            f, collected = getattr(libm, name), []
            for pair in pairs[::3]:
                libm.fesetround(mode)
                value = f(*pair[: len(f.argtypes)])
                libm.fesetround(0)
                collected.append(struct.pack("<d", value))
            report(f"{name}-rounding-{mode:x}", collected)
    extended = ctypes.c_longdouble
    for name in "sinl cosl expl logl sqrtl atanl log2l cbrtl tanhl floorl rintl".split():
        f = getattr(libm, name)
        f.restype, f.argtypes = extended, [extended]
        report(name, [struct.pack("<d", f(value)) for value in values[::2]])
    libc.strtod.restype, libc.strtod.argtypes = double, [ctypes.c_char_p, ctypes.c_void_p]
    report("strtod", [struct.pack("<d", libc.strtod(repr(value).encode(), None)) for value in values])
    place = ctypes.create_string_buffer(600)
    libc.snprintf.argtypes, printed = [ctypes.c_char_p, size, ctypes.c_char_p], []
    for form in (b"%.17g", b"%.40f", b"%a", b"%e"):
        for value in values[::4]:
            libc.snprintf(place, 600, form, double(value))
            printed.append(place.value)
    report("snprintf", printed)


def chosen():
    # Which variant: the address that the name stands for, from the library's beginning. For people.
    with open("/proc/self/maps") as maps:
        base = min(int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith("/libc.so.6"))
    names = "memcpy memset memchr memcmp strlen strchr strcmp strcpy strstr strspn strcasecmp wcslen".split()
    print("# variants", setting, *(f"{n}+{ctypes.cast(getattr(libc, n), ctypes.c_void_p).value - base:x}" for n in names))


chosen()
memory()
text()
wide()
mathematics()
