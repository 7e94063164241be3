package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// userBench runs berth user on a configuration of its own.
type userBench struct {
	t      *testing.T
	dir    string // users.d
	state  string
	config string
}

func newUserBench(t *testing.T) *userBench {
	t.Helper()
	top := t.TempDir()
	b := &userBench{t, filepath.Join(top, "users.d"), filepath.Join(top, "state"), filepath.Join(top, "berth.toml")}
	text := fmt.Sprintf("[server]\nusers_dir = %q\nstate_dir = %q\n", b.dir, b.state)
	if err := os.WriteFile(b.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

// run is one command line, the words split at blanks; the answer is both outputs.
func (b *userBench) run(stdin, line string) (code int, output string) {
	var out bytes.Buffer
	words := strings.Fields(line)
	for i, w := range words {
		if w == `""` {
			words[i] = ""
		}
	}
	code = runUser(append(words, "--config", b.config), strings.NewReader(stdin), &out, &out)
	return code, out.String()
}

// ok runs a command line that must succeed.
func (b *userBench) ok(stdin, line string) string {
	b.t.Helper()
	code, out := b.run(stdin, line)
	if code != 0 {
		b.t.Fatalf("berth user %s: exit %d\n%s", line, code, out)
	}
	return out
}

// load is what the daemon makes of the files.
func (b *userBench) load() *users {
	b.t.Helper()
	us, err := loadUsers(b.dir, b.state, slog.New(slog.DiscardHandler))
	if err != nil {
		b.t.Fatal(err)
	}
	return us
}

func (b *userBench) file(name string) string {
	b.t.Helper()
	data, err := os.ReadFile(filepath.Join(b.dir, name+".toml"))
	if err != nil {
		b.t.Fatal(err)
	}
	return string(data)
}

func TestUserAddPasswdSetListShowDel(t *testing.T) {
	b := newUserBench(t)
	out := b.ok("a good secret\n", "add ann --password-stdin --quota 2GiB --files 1000 --commands up,snap --permissions read,list --shell --tls optional "+
		"--home /srv/ann --uid 1000 --allow-from 10.0.0.0/8,::1 --sessions 3 --download-rate 1MiB --upload-rate 500kB --when-full rotate --expire 30d "+
		"--share public=/srv/public --share in=/srv/in:rw --certificate "+testFingerprint+" --on-upload snap --disabled")
	if out != "added user ann, home /srv/ann\n" {
		t.Errorf("add says %q", out)
	}
	info, err := os.Stat(filepath.Join(b.dir, "ann.toml"))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("the file has mode %v, %v; want 0600", info.Mode(), err)
	}
	us := b.load()
	u := us.get("ann")
	if !u.hash.matches("a good secret") || u.QuotaBytes != 2<<30 || u.QuotaFiles != 1000 || len(u.Commands) != 2 || u.Permissions != permRead|permList ||
		!u.Shell || u.TLS != "optional" || u.Home != "/srv/ann" || *u.UID != 1000 || len(u.AllowFrom) != 2 || u.Sessions != 3 || u.DownloadRate != 1<<20 ||
		u.UploadRate != 500000 || u.WhenFull != "rotate" || u.Expire.std() != 30*24*time.Hour || u.Shares["public"] != (shareConfig{"/srv/public", false}) ||
		u.Shares["in"] != (shareConfig{"/srv/in", true}) || u.Certificates[0] != testFingerprint || u.OnUpload != "snap" || !u.Disabled {
		t.Errorf("add wrote\n%s", b.file("ann"))
	}

	b.ok("another secret\r\n", "passwd ann --password-stdin")
	b.ok("", `set ann --enabled --shell=false --uid "" --permissions "" --share public= --home "" --quota 0`)
	us = b.load()
	u = us.get("ann")
	if !u.hash.matches("another secret") || u.hash.matches("a good secret") || u.Disabled || u.Shell || u.UID != nil || u.Permissions != 0 ||
		len(u.Shares) != 1 || u.Home != filepath.Join(b.state, "homes/ann") || u.QuotaBytes != 0 || u.QuotaFiles != 1000 || u.Sessions != 3 {
		t.Errorf("set wrote\n%s", b.file("ann"))
	}

	b.ok("", "add bob --no-password --quota 500MiB")
	want := fmt.Sprintf(`NAME  HOME%s  QUOTA   FILES  PERMISSIONS                           TLS       STATE
ann   %s  -       1000   -                                     optional  enabled
bob   %s  500MiB  -      read,write,delete,list,rename,mkdir  required  enabled
`, strings.Repeat(" ", len(filepath.Join(b.state, "homes/ann"))-4), filepath.Join(b.state, "homes/ann"), filepath.Join(b.state, "homes/bob"))
	if got := b.ok("", "list"); strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(want), " ") {
		t.Errorf("list:\n%swant:\n%s", got, want)
	}
	var list []userSummary
	if err := json.Unmarshal([]byte(b.ok("", "list --json")), &list); err != nil || len(list) != 2 || list[1].QuotaBytes != 500<<20 || list[0].Permissions == nil {
		t.Errorf("list --json: %v, %+v", err, list)
	}
	show := b.ok("", "show ann")
	for _, line := range []string{`password      = "argon2id"`, `permissions   = []`, `sessions      = 3`, `when_full     = "rotate"`, `commands      = ["up", "snap"]`, `shell_path    = ""  # default`, `expire        = "30d"`, `shares        = { in = { path = "/srv/in", write = true } }`} {
		if !strings.Contains(show, line+"\n") {
			t.Errorf("show: no %q in\n%s", line, show)
		}
	}
	if strings.Contains(show, "$argon2id$") {
		t.Errorf("show prints the hash:\n%s", show)
	}
	var object map[string]any
	if err := json.Unmarshal([]byte(b.ok("", "show --json bob")), &object); err != nil || object["name"] != "bob" || object["password"] != "none" || object["uid"] != nil {
		t.Errorf("show --json: %v, %v", err, object)
	}

	home := filepath.Join(b.state, "homes/bob")
	if err := os.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	if out := b.ok("", "del bob"); !strings.Contains(out, "his files stay in "+home) {
		t.Errorf("del says %q", out)
	}
	if _, err := os.Stat(home); err != nil {
		t.Errorf("del removed the home: %v", err)
	}
	if names, err := os.ReadDir(b.dir); err != nil || len(names) != 1 {
		t.Errorf("users.d holds %v, %v; want ann.toml alone", names, err)
	}
}

func TestUserRefusals(t *testing.T) {
	b := newUserBench(t)
	b.ok("a good secret", "add ann --password-stdin --uid 5")
	b.ok("", "add broken --no-password")
	if err := os.WriteFile(filepath.Join(b.dir, "broken.toml"), []byte("tls = [\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		line, stdin string
		code        int
		want        string
	}{
		{"ad ann", "", 2, `"ad" is no verb; did you mean "add"?`},
		{"frobnicate", "", 2, "known: add, passwd, set, del, list, show"},
		{"add", "", 2, "which user?"},
		{"add bob carl", "", 2, "one user at a time"},
		{"list ann", "", 2, "takes no name"},
		{"add Bob --no-password", "", 2, `"Bob" is no user name; use 1 to 32 of a-z`},
		{"add ../bob --no-password", "", 2, "is no user name"},
		{"add root --no-password", "", 2, "reserved"},
		{"add ann --no-password", "", 1, `user "ann" exists already`},
		{"add bob", "", 2, "use --password-stdin"},
		{"add bob --password-stdin --no-password", "", 2, "only one of"},
		{"add bob --password-stdin", "", 1, "the password is empty"},
		{"add bob --password-stdin", strings.Repeat("x", 600), 1, "at most 512"},
		{"add bob --quotta 1", "", 2, `no flag --quotta; did you mean "quota"?`},
		{"add bob --quota", "", 2, `--config: `},
		{"add bob --quota 2G", "", 2, `--quota: "2G" has no known unit; write "2GiB"`},
		{"add bob --files many", "", 2, "--files: \"many\" is not a number"},
		{"add bob --permissions read,wriet", "", 2, `--permissions: "wriet" is no permission; did you mean "write"?`},
		{"add bob --allow-from 10.0.0.0/33", "", 2, "--allow-from: "},
		{"add bob --certificate abc", "", 2, "--certificate: "},
		{"add bob --share public", "", 2, "--share: "},
		{"add bob --share ../x=/srv", "", 2, "cannot be the name of a share"},
		{"add bob --shell=perhaps", "", 2, "--shell: "},
		{"add bob --no-password --tls maybe", "", 1, `tls: "maybe" is not known; write "required", "optional" or "always"`},
		{"add bob --no-password --home srv", "", 1, `home: "srv" is not absolute`},
		{"add bob --no-password --home /", "", 1, "which is berth's own"},
		{"add bob --no-password --uid 5", "", 1, `uid: 5 is the uid of user "ann" already`},
		{"add bob --password-hash $1$a$b", "", 2, "MD5-crypt"},
		{"add bob --password-hash *", "", 2, "locked"},
		{"set ann", "", 2, "nothing to change"},
		{"set anna --shell", "", 1, `no user "anna" in`},
		{"set anna --shell", "", 1, `did you mean "ann"?`},
		{"passwd bob --password-stdin", "secret secret", 1, `no user "bob"`},
		{"del bob", "", 1, `no user "bob"`},
		{"show bob", "", 1, `no user "bob"`},
		{"show broken", "", 1, "broken.toml:"},
		{"set broken --shell", "", 1, "mend it by hand"},
		{"list", "", 1, "broken.toml:"},
	} {
		code, out := b.run(tt.stdin, tt.line)
		if code != tt.code || !strings.Contains(out, tt.want) {
			// "--quota --config FILE": the flag takes the next word for its value.
			if tt.line == "add bob --quota" && code == 2 {
				continue
			}
			t.Errorf("berth user %s: exit %d, %q; want %d, %q", tt.line, code, out, tt.code, tt.want)
		}
		if _, err := os.Stat(filepath.Join(b.dir, "bob.toml")); err == nil {
			t.Fatalf("berth user %s wrote a file", tt.line)
		}
	}
	if names, err := os.ReadDir(b.dir); err != nil || len(names) != 2 {
		t.Errorf("users.d holds %v, %v; want the two files and nothing unfinished", names, err)
	}
}

func TestUserHelp(t *testing.T) {
	for _, args := range [][]string{{"-h"}, {"--help"}, {"help"}, {"add", "-h"}, {"passwd", "-h"}, {"set", "x", "--help"}, {"del", "-h"}, {"list", "-h"}, {"show", "-h"}} {
		var out, errs bytes.Buffer
		code := runUser(args, strings.NewReader(""), &out, &errs)
		if code != 0 || errs.Len() > 0 || !strings.HasPrefix(out.String(), "Usage: berth user ") || !strings.Contains(out.String(), "Example:\n  ") {
			t.Errorf("berth user %q: exit %d, %q, %q; want usage and an example", args, code, out.String(), errs.String())
		}
	}
	var out, errs bytes.Buffer
	if code := runUser(nil, nil, &out, &errs); code != 2 || out.Len() > 0 || errs.Len() == 0 {
		t.Errorf("berth user alone: exit %d; want 2 and the usage", code)
	}
	runUser([]string{"add", "-h"}, nil, &out, &errs)
	for _, want := range []string{"--quota SIZE", "--share NAME=PATH[:rw]", "--password-stdin\n", "--config FILE", "--shell\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("berth user add -h: no %q in\n%s", want, out.String())
		}
	}
	missing := filepath.Join(t.TempDir(), "none.toml")
	if code := runUser([]string{"list", "--config", missing}, nil, &out, &errs); code != 1 || !strings.Contains(errs.String(), missing) {
		t.Errorf("without a configuration: exit %d, %q", code, errs.String())
	}
}

func TestUserTakesOverAHash(t *testing.T) {
	b := newUserBench(t)
	b.ok("", "add ann --password-hash "+cheapHash)
	if u := b.load().get("ann"); u.Password != cheapHash {
		t.Errorf("password = %q; want %q", u.Password, cheapHash)
	}
	if out := b.ok("short\n", "passwd ann --password-stdin"); !strings.Contains(out, "warning") {
		t.Errorf("a short password gives no warning: %q", out)
	}
}

func TestUserQuotaFilesystem(t *testing.T) {
	b := newUserBench(t)
	b.ok("", "add ann --no-password --quota 1GiB --files 7")
	b.ok("", "set ann --quota filesystem")
	if u := b.load().get("ann"); u.Quota != "filesystem" || u.QuotaBytes != 0 || u.QuotaFiles != 0 {
		t.Errorf("wrote\n%s", b.file("ann"))
	}
	b.ok("", "set ann --quota 2GiB")
	if u := b.load().get("ann"); u.Quota != "" || u.QuotaBytes != 2<<30 {
		t.Errorf("wrote\n%s", b.file("ann"))
	}
}

// TestUserKeepsLinkOwnerAndMode: a file that a provisioning tool linked into users.d
// stays a link, and a mode that lets the daemon's group read stays.
func TestUserKeepsLinkAndMode(t *testing.T) {
	b := newUserBench(t)
	b.ok("", "add ann --no-password")
	real := filepath.Join(t.TempDir(), "real.toml")
	link := filepath.Join(b.dir, "ann.toml")
	if err := os.Rename(link, real); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(real, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	b.ok("", "set ann --shell")
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link was replaced: %v, %v", info, err)
	}
	if info, err := os.Stat(link); err != nil || info.Mode() != 0o640 {
		t.Errorf("mode %v, %v; want 0640: as it was, less what others had", info.Mode(), err)
	}
}

func TestUserFileForAGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	for _, tt := range []struct {
		uid, gid int
		dirMode  os.FileMode
		want     os.FileMode
	}{{0, 4242, 0o750, 0o640}, {4242, 4243, 0o700, 0o600}, {0, 0, 0o755, 0o600}, {0, 4242, 0o700, 0o600}} {
		b := newUserBench(t)
		if err := os.Mkdir(b.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(b.dir, tt.uid, tt.gid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(b.dir, tt.dirMode); err != nil {
			t.Fatal(err)
		}
		b.ok("", "add ann --no-password")
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(b.dir, "ann.toml"), &st); err != nil {
			t.Fatal(err)
		}
		if int(st.Uid) != tt.uid || int(st.Gid) != tt.gid || os.FileMode(st.Mode&0o777) != tt.want {
			t.Errorf("in a directory of %d:%d %v the file has %d:%d %04o; want the same owner and %v", tt.uid, tt.gid, tt.dirMode, st.Uid, st.Gid, st.Mode&0o777, tt.want)
		}
	}
}

func TestSetKeepsWhatPeopleWrote(t *testing.T) {
	hand, err := os.ReadFile("testdata/auth/hand.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ line, want string }{
		{"--quota 3GiB", strings.Replace(string(hand), `"1GiB"`, `"3GiB"`, 1)},
		{"--permissions read", strings.Replace(string(hand), "[\n  \"read\",  # she reads\n  \"write\", # and writes\n]", `["read"]`, 1)},
		{"--sessions 2 --shell", strings.Replace(string(hand), "]\n\n# shared", "]\nshell = true\nsessions = 2\n\n# shared", 1)},
		{`--home ""`, string(hand)},
		{"--share x=/srv/x", strings.Replace(strings.Replace(string(hand), "[shares.office]\npath = \"/srv/office\" # on the NAS\nwrite = true\n", "", 1),
			"]\n\n# shared", "]\nshares = { office = { path = \"/srv/office\", write = true }, x = { path = \"/srv/x\", write = false } }\n\n# shared", 1)},
	} {
		b := newUserBench(t)
		b.ok("", "add ann --no-password")
		writeUser(t, b.dir, "ann", string(hand))
		b.ok("", "set ann "+tt.line)
		if got := b.file("ann"); got != tt.want {
			t.Errorf("set %s:\n%s\nwant:\n%s", tt.line, got, tt.want)
		}
	}
}

func TestEditUserFile(t *testing.T) {
	edits := map[string]string{"sessions": "5", "home": ""}
	for _, tt := range []struct{ name, in, want string }{
		{"empty", "", "sessions = 5\n"},
		{"no newline at the end", "shell = true", "shell = true\nsessions = 5\n"},
		{"replaced", "sessions = 1 # one\nhome = \"/x\"\n", "sessions = 5 # one\n"},
		{"quoted key", "\"sessions\"=1\n'home' = '/x'\n", "\"sessions\"=5\n"},
		{"indented, CRLF", "  sessions = 1\r\n\thome = \"/x\"\r\n", "  sessions = 5\r\n"},
		{"many lines", "home = \"\"\"\n/x\"\"\"\nshell = true\n", "shell = true\nsessions = 5\n"},
		{"only a section", "[shares.a]\npath = \"/a\"\n", "sessions = 5\n[shares.a]\npath = \"/a\"\n"},
		{"the same key in a section", "shell = true\n[shares.sessions]\npath = \"/a\"\n", "shell = true\nsessions = 5\n[shares.sessions]\npath = \"/a\"\n"},
		{"byte order mark", "\xef\xbb\xbfsessions = 1\n", "sessions = 5\n"},
		{"equals sign in a comment and a key", "\"a=b\" = 1 # x = y\nsessions = 1 # a = b\n", "\"a=b\" = 1 # x = y\nsessions = 5 # a = b\n"},
	} {
		got, err := editUserFile([]byte(tt.in), edits)
		if err != nil || string(got) != tt.want {
			t.Errorf("%s: editUserFile(%q) = %q, %v; want %q", tt.name, tt.in, got, err, tt.want)
		}
	}
	for _, shares := range []string{"shares.a.path = \"/a\"\n", "shares = { a = { path = \"/a\" } }\n", "[shares]\na = { path = \"/a\" }\n", "[shares.a]\npath = \"/a\"\n[shares.b]\npath = \"/b\"\n"} {
		got, err := editUserFile([]byte("shell = true\n"+shares), map[string]string{"shares": `{ c = { path = "/c" } }`})
		if want := "shell = true\nshares = { c = { path = \"/c\" } }\n"; err != nil || string(got) != want {
			t.Errorf("editUserFile(%q) = %q, %v; want %q", shares, got, err, want)
		}
	}
	if _, err := editUserFile([]byte("a = 1\nb = [\n"), edits); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("broken syntax: %v; want an error with line 2", err)
	}
}

// TestUserPasswordPrompt types at a real terminal.
func TestUserPasswordPrompt(t *testing.T) {
	for _, tt := range []struct {
		name, typed string
		code        int
		want        string
	}{
		{"twice the same", "a good secret\ra good secret\r", 0, "added user ann"},
		{"two that differ", "a good secret\ranother secret\r", 1, "the two passwords differ"},
		{"Ctrl-C", "a goo\x03", 1, "nothing was changed"},
		{"Ctrl-D", "\x04", 1, "nothing was changed"},
		{"corrected by backspace", "a good secrex\x7ft\ra good secret\r", 0, "added user ann"},
		{"empty", "\r", 1, "the password is empty"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newUserBench(t)
			master, slave := openTerminal(t)
			before, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			typist := &promptWatcher{out: &out, prompted: sync.OnceFunc(func() { go io.WriteString(master, tt.typed) })}
			code := runUser([]string{"add", "ann", "--config", b.config}, slave, &out, typist)
			if code != tt.code || !strings.Contains(out.String(), tt.want) || strings.Contains(out.String(), "secre") {
				t.Errorf("exit %d, %q; want %d, %q, and no password shown", code, out.String(), tt.code, tt.want)
			}
			after, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
			if err != nil || *before != *after {
				t.Errorf("the terminal was left as %+v, %v; want %+v", after, err, before)
			}
			if u := b.load().get("ann"); tt.code == 0 && (u == nil || !u.hash.matches("a good secret")) {
				t.Errorf("the password does not fit: %+v", u)
			}
		})
	}
}

// promptWatcher is standard error; what is typed before the prompt would be echoed.
type promptWatcher struct {
	out      *bytes.Buffer
	prompted func()
}

func (w *promptWatcher) Write(p []byte) (int, error) {
	n, err := w.out.Write(p)
	if strings.Contains(w.out.String(), "Password for ann: ") {
		w.prompted()
	}
	return n, err
}

// openTerminal makes a pseudo-terminal, pts(4).
func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}
