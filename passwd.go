package main

// Password hash formats: what the password key of a user file may hold, and how a
// password is held against it. A file of its own, beside auth.go, for trust: this is
// the only place where a password becomes a digest, and what must be read with RFC
// 9106, bcrypt and SHA-crypt at hand is here in one piece. It knows nothing of users,
// addresses, delays or files. No error made here repeats any part of a stored value
// but the name of its scheme, since what people put there by mistake is a password.

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"github.com/GehirnInc/crypt"
	"github.com/GehirnInc/crypt/sha256_crypt"
	"github.com/GehirnInc/crypt/sha512_crypt"
	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// New hashes: the second parameter set that OWASP's password storage sheet gives for
// Argon2id, the one for machines with little memory; RFC 9106 section 4 has the shape.
const (
	argonMemory  = 19456 // KiB
	argonTime    = 2
	argonThreads = 1
	argonSalt    = 16 // bytes, RFC 9106 section 3.1
	argonKey     = 32 // bytes
)

// Bounds on what a stored hash may ask for. Anything beyond costs more than about a
// second of one core, or the memory of a whole small box, for each try of anyone who
// knows the user's name. The defaults of PHP, Python's argon2-cffi, htpasswd and
// Debian's shadow file are all within.
const (
	maxArgonMemory  = 128 << 10 // KiB
	maxArgonTime    = 16
	maxArgonThreads = 16
	maxArgonWork    = 1 << 20 // KiB times passes
	maxBcryptCost   = 14
	minShaRounds    = 1000 // below it crypt(3) implementations differ
	maxShaRounds    = 1_000_000
	maxShaSalt      = 16 // the specification's limit
)

// maxPassword is the longest password that is hashed, in bytes. The SHA-crypt key
// schedule is quadratic in the length, so a whole control line of password would be a
// way to burn this machine's time.
const maxPassword = 512

const acceptedSchemes = "$argon2id$, $2y$ (bcrypt), $6$ or $5$ (SHA-crypt)"

// passwordHash is a stored hash that has been read and found affordable.
type passwordHash struct {
	scheme  string // as berth user show prints it
	memory  int    // KiB that one comparison takes
	matches func(password string) bool
}

// parsePassword reads the password key of a user file. A nil hash without an error
// means that no password logs in: the field is empty, or locked with a leading "*" or
// "!" as in shadow(5). The error says what is accepted instead.
func parsePassword(stored string) (*passwordHash, error) {
	if stored == "" || stored[0] == '*' || stored[0] == '!' {
		return nil, nil
	}
	scheme := ""
	if stored[0] == '$' {
		scheme, _, _ = strings.Cut(stored[1:], "$")
	}
	switch scheme {
	case "argon2id":
		return parseArgon2id(stored)
	case "2y", "2a", "2b":
		return parseBcrypt(stored)
	case "6":
		return parseShaCrypt(stored, "sha512-crypt", sha512_crypt.MagicPrefix, 86, sha512_crypt.New)
	case "5":
		return parseShaCrypt(stored, "sha256-crypt", sha256_crypt.MagicPrefix, 43, sha256_crypt.New)
	}
	if hint := schemeHint(scheme); hint != "" {
		return nil, errorf("%s is not accepted, only %s", hint, acceptedSchemes)
	}
	return nil, errorf("not a password hash; accepted are %s", acceptedSchemes)
}

// schemeHint names the schemes that a password file is likely to bring along.
func schemeHint(scheme string) string {
	switch scheme {
	case "y", "gy":
		return "yescrypt ($" + scheme + "$)"
	case "7":
		return "scrypt ($7$)"
	case "1", "apr1":
		return "MD5-crypt ($" + scheme + "$)"
	case "argon2i", "argon2d":
		return scheme
	case "2", "2x":
		return "the flawed bcrypt $" + scheme + "$"
	}
	return ""
}

// parseArgon2id reads $argon2id$v=19$m=KIB,t=PASSES,p=THREADS$SALT$KEY, the PHC string.
func parseArgon2id(stored string) (*passwordHash, error) {
	parts := strings.Split(stored, "$")
	if len(parts) != 6 || parts[2] != "v=19" {
		return nil, newError("damaged argon2id hash; its form is $argon2id$v=19$m=19456,t=2,p=1$salt$key")
	}
	var m, t, p int
	params := strings.Split(parts[3], ",")
	if len(params) != 3 || !hashParameter(params[0], "m=", &m) || !hashParameter(params[1], "t=", &t) || !hashParameter(params[2], "p=", &p) {
		return nil, newError("damaged argon2id parameters; their form is m=19456,t=2,p=1")
	}
	if m < 8*p || m > maxArgonMemory || t < 1 || t > maxArgonTime || p < 1 || p > maxArgonThreads || m*t > maxArgonWork {
		return nil, errorf("argon2id parameters m=%d,t=%d,p=%d are out of bounds; at most m=%d (KiB), t=%d, p=%d and m times t %d, at least m=8 a thread",
			m, t, p, maxArgonMemory, maxArgonTime, maxArgonThreads, maxArgonWork)
	}
	salt, err1 := base64.RawStdEncoding.Strict().DecodeString(parts[4])
	key, err2 := base64.RawStdEncoding.Strict().DecodeString(parts[5])
	if err1 != nil || err2 != nil || len(salt) < 8 || len(salt) > 64 || len(key) < 16 || len(key) > 64 {
		return nil, newError("damaged argon2id salt or key; they are base64 without padding, 8 to 64 and 16 to 64 bytes long")
	}
	return argon2idHash(m, t, p, salt, key), nil
}

//go:noinline
func argon2idHash(m, t, p int, salt, key []byte) *passwordHash {
	return &passwordHash{scheme: "argon2id", memory: m, matches: func(password string) bool {
		got := argon2.IDKey([]byte(password), salt, uint32(t), uint32(m), uint8(p), uint32(len(key)))
		return subtle.ConstantTimeCompare(got, key) == 1
	}}
}

// hashParameter reads "m=19456"; a sign, a leading zero or more than nine digits is no number.
func hashParameter(s, name string, into *int) bool {
	digits, ok := cutPrefix(s, name)
	if !ok || digits == "" || len(digits) > 9 || digits[0] < '1' || digits[0] > '9' {
		return false
	}
	n, err := strconv.Atoi(digits)
	*into = n
	return err == nil
}

// parseBcrypt reads $2y$COST$, 22 characters of salt and 31 of key. As everywhere,
// bytes after the 72nd of a password do not count.
func parseBcrypt(stored string) (*passwordHash, error) {
	const length = 60
	cost, err := bcrypt.Cost([]byte(stored))
	if err != nil || len(stored) != length || !cryptAlphabet(stored[7:]) {
		return nil, newError("damaged bcrypt hash; its form is $2y$12$ and 53 characters, 60 in all")
	}
	if cost > maxBcryptCost {
		return nil, errorf("bcrypt cost %d is out of bounds; at most %d", cost, maxBcryptCost)
	}
	return &passwordHash{scheme: "bcrypt", memory: 4, matches: func(password string) bool {
		return bcrypt.CompareHashAndPassword([]byte(stored), []byte(password)) == nil
	}}, nil
}

// parseShaCrypt reads $6$[rounds=N$]SALT$KEY; magic, keyLength and scheme are the
// variant's. N=5000 where it is not given.
func parseShaCrypt(stored, scheme, magic string, keyLength int, newCrypt func() crypt.Crypter) (*passwordHash, error) {
	damaged := errorf("damaged %s hash; its form is %ssalt$key or %srounds=5000$salt$key, the salt at most %d and the key %d characters long",
		scheme, magic, magic, maxShaSalt, keyLength)
	i := strings.LastIndexByte(stored, '$')
	setting, key := stored[:i], stored[i+1:]
	salt, isLong := cutPrefix(setting, magic)
	if !isLong { // "$6$" alone
		return nil, damaged
	}
	if first, rest, ok := strings.Cut(salt, "$"); ok {
		var rounds int
		if !hashParameter(first, "rounds=", &rounds) {
			return nil, damaged
		}
		if rounds < minShaRounds || rounds > maxShaRounds {
			return nil, errorf("%s rounds=%d is out of bounds; %d to %d", scheme, rounds, minShaRounds, maxShaRounds)
		}
		salt = rest
	}
	if salt == "" || len(salt) > maxShaSalt || !cryptAlphabet(salt) || len(key) != keyLength || !cryptAlphabet(key) {
		return nil, damaged
	}
	return &passwordHash{scheme: scheme, memory: 4, matches: func(password string) bool {
		// Not Verify: given the whole stored string with rounds= in it, the library
		// takes the end of a salt shorter than 16 characters from the key, and no
		// password fits. The setting alone is read rightly.
		got, err := newCrypt().Generate([]byte(password), []byte(setting))
		return err == nil && subtle.ConstantTimeCompare([]byte(got), []byte(stored)) == 1
	}}, nil
}

// cryptAlphabet tells whether s is made of crypt(3)'s base-64 digits only.
//
//go:noinline
func cryptAlphabet(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool {
		return !(r >= '.' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z')
	}) < 0
}

// hashPassword makes the Argon2id PHC string of a new password. Its error says what a
// password may not be.
func hashPassword(password string) (string, error) {
	if err := checkPassword(password); err != nil {
		return "", err
	}
	salt := make([]byte, argonSalt)
	rand.Read(salt) // never fails: crypto/rand ends the program instead
	key := argon2.IDKey([]byte(password), salt, argonTime, argonMemory, argonThreads, argonKey)
	b64 := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s", argonMemory, argonTime, argonThreads, b64(salt), b64(key)), nil
}

// checkPassword refuses what could never be typed at a login: a control line ends at
// CR or LF, and clients cut it at NUL.
func checkPassword(password string) error {
	switch {
	case password == "":
		return newError("the password is empty; give one, or use --no-password for a user with certificates only")
	case len(password) > maxPassword:
		return errorf("the password has %d bytes; at most %d", len(password), maxPassword)
	case strings.ContainsAny(password, "\x00\r\n"):
		return newError("the password holds NUL, CR or LF, which no client can send; leave them out")
	}
	return nil
}

// dummyHash costs what a new user's hash costs and matches nothing: the key is random
// bytes, not the digest of anything. Making it computes no hash, so it delays no start.
func dummyHash() *passwordHash {
	random := make([]byte, argonSalt+argonKey)
	rand.Read(random)
	return argon2idHash(argonMemory, argonTime, argonThreads, random[:argonSalt], random[argonSalt:])
}
