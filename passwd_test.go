package main

import (
	"strings"
	"testing"
)

// foreignHashes were made by crypt(3) of libxcrypt and by the reference argon2 program.
var foreignHashes = []struct{ name, scheme, password, stored string }{
	{"argon2id of the reference implementation", "argon2id", "password", "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"},
	{"bcrypt 2y", "bcrypt", "correct horse", "$2y$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2"},
	{"bcrypt 2b", "bcrypt", "correct horse", "$2b$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2"},
	{"bcrypt 2a", "bcrypt", "correct horse", "$2a$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2"},
	{"sha512-crypt", "sha512-crypt", "correct horse", "$6$abc$dv7vAygfDghQeO8lNAuLv4y4HAQXw9d6a14dcjFGfTijFc0S6MgzM7g53hZv6MaGDXhNpGxhpXakWuTlqHtzn."},
	{"sha512-crypt, rounds and a short salt", "sha512-crypt", "correct horse", "$6$rounds=1000$abc$3EgFb4AlyVHHbB8rZGsx.UO9EloeRJkmmCazg5i8FYgCDMmLggphTmz.lZDeWybZ2DY3jFUtB1pLy87i2YoZr."},
	{"sha512-crypt, default rounds spelt out", "sha512-crypt", "correct horse", "$6$rounds=5000$saltstringsaltst$bCw7Luzu/QuQ7MeikTUrtG/H3qEhWE0qeSa7fQ7Q.KB7rHffvy6nWAiqxozGGanThe/hZPI9w1X/Yv09XRqnt1"},
	{"sha512-crypt, UTF-8", "sha512-crypt", "pässwörd", "$6$rounds=1000$abcdefgh$B1aVteGQOqUS9lI2PNDcl9wMunEnXU6fzjXrRnnjiKZoqU40kdv7q7otlYDWg9vlTD2K40LzvOre3nE1Xv0Mm0"},
	{"sha256-crypt", "sha256-crypt", "correct horse", "$5$saltstring$vc6YOOogU4kWVvwga8e9zTFgKcy4tb5LaPxIiPJzqEC"},
	{"sha256-crypt, rounds and a short salt", "sha256-crypt", "correct horse", "$5$rounds=1500$ab$3wKPNTqZMEkloeG7Ycn/bMxxaXTSMBiLsQyaZU27s79"},
}

func TestPasswordHashesOfOtherPrograms(t *testing.T) {
	for _, tt := range foreignHashes {
		t.Run(tt.name, func(t *testing.T) {
			h, err := parsePassword(tt.stored)
			if err != nil {
				t.Fatalf("parsePassword(%q): %v", tt.stored, err)
			}
			if h.scheme != tt.scheme {
				t.Errorf("scheme = %q; want %q", h.scheme, tt.scheme)
			}
			for _, try := range []struct {
				password string
				want     bool
			}{{tt.password, true}, {tt.password + "x", false}, {tt.password[1:], false}, {"", false}, {strings.ToUpper(tt.password), false}} {
				if got := h.matches(try.password); got != try.want {
					t.Errorf("matches(%q) = %v; want %v", try.password, got, try.want)
				}
			}
		})
	}
}

func TestLockedPasswordsNeverMatch(t *testing.T) {
	for _, stored := range []string{"", "*", "!", "!!", "!$6$abc$x", "*LK*"} {
		if h, err := parsePassword(stored); h != nil || err != nil {
			t.Errorf("parsePassword(%q) = %v, %v; want no hash, no error", stored, h, err)
		}
	}
}

func TestParsePasswordRefuses(t *testing.T) {
	const salt, key = "c29tZXNhbHQ", "CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"
	bcryptTail := "abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2"
	sha := strings.Repeat("a", 86)
	for _, tt := range []struct{ name, stored, want string }{
		{"a password", "hunter2", "not a password hash"},
		{"a password that looks like a hash", "$hunter2$", "not a password hash"},
		{"MD5", "$1$abc$def", "MD5-crypt ($1$) is not accepted, only $argon2id$, $2y$ (bcrypt), $6$ or $5$"},
		{"yescrypt", "$y$j9T$abc$def", "yescrypt ($y$) is not accepted"},
		{"argon2i", "$argon2i$v=19$m=19456,t=2,p=1$" + salt + "$" + key, "argon2i is not accepted"},
		{"argon2id without version", "$argon2id$m=19456,t=2,p=1$" + salt + "$" + key, "damaged argon2id hash"},
		{"argon2id memory", "$argon2id$v=19$m=4194304,t=2,p=1$" + salt + "$" + key, "out of bounds"},
		{"argon2id passes", "$argon2id$v=19$m=19456,t=17,p=1$" + salt + "$" + key, "out of bounds"},
		{"argon2id work", "$argon2id$v=19$m=131072,t=16,p=1$" + salt + "$" + key, "out of bounds"},
		{"argon2id threads", "$argon2id$v=19$m=19456,t=2,p=17$" + salt + "$" + key, "out of bounds"},
		{"argon2id too little memory", "$argon2id$v=19$m=7,t=2,p=1$" + salt + "$" + key, "out of bounds"},
		{"argon2id zero", "$argon2id$v=19$m=19456,t=0,p=1$" + salt + "$" + key, "damaged argon2id parameters"},
		{"argon2id sign", "$argon2id$v=19$m=+9,t=2,p=1$" + salt + "$" + key, "damaged argon2id parameters"},
		{"argon2id overflow", "$argon2id$v=19$m=99999999999999999999,t=2,p=1$" + salt + "$" + key, "damaged argon2id parameters"},
		{"argon2id empty key", "$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$", "damaged argon2id salt or key"},
		{"argon2id bad base64", "$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$" + key[1:] + "=", "damaged argon2id salt or key"},
		{"bcrypt cost", "$2y$15$" + bcryptTail, "cost 15 is out of bounds"},
		{"bcrypt cut short", "$2y$05$" + bcryptTail[1:], "damaged bcrypt"},
		{"bcrypt bad digit", "$2y$05$" + bcryptTail[1:] + "!", "damaged bcrypt"},
		{"bcrypt nothing", "$2y$", "damaged bcrypt"},
		{"bcrypt 2x", "$2x$05$" + bcryptTail, "the flawed bcrypt"},
		{"sha rounds many", "$6$rounds=999999999$abc$" + sha, "rounds=999999999 is out of bounds"},
		{"sha rounds few", "$6$rounds=10$abc$" + sha, "out of bounds"},
		{"sha rounds octal", "$6$rounds=05000$abc$" + sha, "damaged"},
		{"sha nothing", "$6$", "damaged"},
		{"sha no key", "$6$abc", "damaged"},
		{"sha empty salt", "$6$$" + sha, "damaged"},
		{"sha long salt", "$6$" + strings.Repeat("s", 17) + "$" + sha, "damaged"},
		{"sha key of the other", "$5$abc$" + sha, "damaged"},
		{"sha extra field", "$6$abc$def$" + sha, "damaged"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, err := parsePassword(tt.stored)
			if h != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("parsePassword(%q) = %v, %v; want an error with %q", tt.stored, h, err, tt.want)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error repeats the password: %v", err)
			}
		})
	}
}

func TestHashPassword(t *testing.T) {
	a, err := hashPassword("secret pass")
	if err != nil {
		t.Fatal(err)
	}
	b, err := hashPassword("secret pass")
	if err != nil {
		t.Fatal(err)
	}
	if a == b {
		t.Errorf("two hashes of one password are the same: %s", a)
	}
	if !strings.HasPrefix(a, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Errorf("hashPassword = %s; want the parameters of the contract", a)
	}
	h, err := parsePassword(a)
	if err != nil || !h.matches("secret pass") || h.matches("secret pas") {
		t.Errorf("parsePassword(%q) = %v, %v; want one that fits its password alone", a, h, err)
	}
	for _, bad := range []string{"", "a\nb", "a\x00b", strings.Repeat("x", maxPassword+1)} {
		if got, err := hashPassword(bad); err == nil {
			t.Errorf("hashPassword(%q) = %q; want an error", bad, got)
		}
	}
}

func TestDummyHashMatchesNothing(t *testing.T) {
	for _, password := range []string{"", "x", "password"} {
		if dummyHash().matches(password) {
			t.Errorf("the dummy hash matches %q", password)
		}
	}
}
