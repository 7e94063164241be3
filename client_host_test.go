package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// newHome gives the test a home, and nothing of the real environment.
func newHome(t *testing.T) (dir string) {
	t.Helper()
	home := t.TempDir()
	for _, name := range []string{"XDG_CONFIG_HOME", "NETRC", "BERTH_URL", "BERTH_PASSWORD", "LOGNAME"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", home)
	t.Setenv("USER", "me")
	return filepath.Join(home, ".config", "berth")
}

func writeHome(t *testing.T, file, text string, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, mode); err != nil {
		t.Fatal(err)
	}
}

func TestParseTarget(t *testing.T) {
	newHome(t)
	for _, c := range []struct {
		word string
		want target // typed is word unless said otherwise
	}{
		// As scp and rsync users write them.
		{"box:", target{remote: true, host: "box"}},
		{"box:photos/", target{remote: true, host: "box", path: "photos/"}},
		{"ann@box:photos/a.jpg", target{remote: true, user: "ann", host: "box", path: "photos/a.jpg"}},
		{"ann@box:/photos", target{remote: true, user: "ann", host: "box", path: "/photos"}},
		{"box:a:b", target{remote: true, host: "box", path: "a:b"}},
		{"box:a@b", target{remote: true, host: "box", path: "a@b"}},
		{"box:~", target{remote: true, host: "box", path: "/"}},
		{"box:~/x", target{remote: true, host: "box", path: "/x"}},
		{"box:./~", target{remote: true, host: "box", path: "./~"}},
		{"box:~ann", target{remote: true, host: "box", path: "~ann"}},
		{"box:*.jpg", target{remote: true, host: "box", path: "*.jpg"}},
		{"box:\xff", target{remote: true, host: "box", path: "\xff"}},
		{"ann@corp@box:x", target{remote: true, user: "ann@corp", host: "box", path: "x"}},
		{"my_box:x", target{remote: true, host: "my_box", path: "x"}},
		{"10.0.0.5:x", target{remote: true, host: "10.0.0.5", path: "x"}},
		// Files here.
		{"photos", target{}},
		{".", target{}},
		{"-", target{}},
		{"./a:b", target{}},
		{"/srv/a:b", target{}},
		{"dir/box:x", target{}},
		{"ann@box", target{}},
		{"ann@box/x:y", target{}},
		{"[ab]*.txt", target{}},
		{"[a-z]/x:y", target{}},
		// IPv6.
		{"[::1]:x", target{remote: true, host: "::1", path: "x"}},
		{"ann@[fe80::1%eth0]:", target{remote: true, user: "ann", host: "fe80::1%eth0"}},
		{"[2001:db8::5]:a:b", target{remote: true, host: "2001:db8::5", path: "a:b"}},
		{"[box]:x", target{remote: true, host: "box", path: "x"}},
		// Sockets.
		{"unix:/run/berth/berth.sock:", target{remote: true, socket: "/run/berth/berth.sock"}},
		{"unix:/run/berth/berth.sock", target{remote: true, socket: "/run/berth/berth.sock"}},
		{"unix:/run/berth/berth.sock:a/b:c", target{remote: true, socket: "/run/berth/berth.sock", path: "a/b:c"}},
		{"ann@unix:/run/b.sock:~/x", target{remote: true, user: "ann", socket: "/run/b.sock", path: "/x"}},
		// URLs.
		{"berth://box", target{remote: true, host: "box"}},
		{"BERTH://box/", target{remote: true, host: "box", typed: "berth://box/"}},
		{"berth://box/photos/a.jpg", target{remote: true, host: "box", path: "photos/a.jpg"}},
		{"berth://box//photos", target{remote: true, host: "box", path: "/photos"}},
		{"berth://box:990/x", target{remote: true, host: "box", port: 990, path: "x"}},
		{"berth://ann:p%40s%2Fs@box/x", target{remote: true, user: "ann", password: "p@s/s", host: "box", path: "x", typed: "berth://ann@box/x"}},
		{"berth://[::1]:2122/x%20y%3Fz", target{remote: true, host: "::1", port: 2122, path: "x y?z"}},
		{"berth://[fe80::1%25eth0]/", target{remote: true, host: "fe80::1%eth0"}},
	} {
		if c.want.typed == "" {
			c.want.typed = c.word
		}
		if got, err := parseTarget(c.word); err != nil || got != c.want {
			t.Errorf("parseTarget(%q) = %+v, %v; want %+v", c.word, got, err, c.want)
		}
	}
}

func TestParseTargetRefuses(t *testing.T) {
	newHome(t)
	for _, c := range []struct{ word, want string }{
		{"", "empty word"},
		{":photos", "set BERTH_URL=berth://ann@box/"},
		{"@box:x", `"" is not a user name`},
		{"ann@:x", "names no box"},
		{"-oProxy:x", "is not the name of a box"},
		{"bo x:y", "is not the name of a box"},
		{"bo\x1b[1mx:y", "is not the name of a box"},
		{"::1:x", "write [::1]:"},
		{"::1", "write [::1]:"},
		{"fe80::1:", "write [fe80::1]:"},
		{"[::1]", "write [::1]: for its home"},
		{"[::g]:x", "is not the name of a box"},
		{"unix:berth.sock:x", "absolute path"},
		{"unix:/run/:x", "absolute path"},
		{"unix:/" + strings.Repeat("x", maxUnixPath) + ":", "at most 107 bytes"},
		{"ftp://box/x", "use lftp or curl"},
		{"sftp://box/x", "not berth's protocol"},
		{"berth://", "names no box"},
		{"berth:///x", "names no box"},
		{"berth://box:0/", "port 0"},
		{"berth://box:70000/", "port 70000"},
		{"berth://box/a?b", "has a ? or #"},
		{"berth://box/a#b", "has a ? or #"},
		{"berth://ann:sec/ret@box/", "cannot be read"},
		{"berth://ann:sec%zzret@box/", "cannot be read"},
	} {
		got, err := parseTarget(c.word)
		if err == nil || !strings.Contains(err.Error(), c.want) || exitCode(err) != exitUsage {
			t.Errorf("parseTarget(%q) = %+v, %v; want an error with %q", c.word, got, err, c.want)
		} else if strings.Contains(err.Error(), "sec") {
			t.Errorf("parseTarget(%q) shows the password: %v", c.word, err)
		}
	}
}

func TestBerthURL(t *testing.T) {
	newHome(t)
	if _, ok, err := defaultTarget(); ok || err != nil {
		t.Errorf("without BERTH_URL: %v, %v", ok, err)
	}
	for _, c := range []struct{ env, word, host, path string }{
		{"box", ":", "box", ""},
		{"box", ":x", "box", "x"},
		{"ann@box:photos", ":", "box", "photos"},
		{"ann@box:photos/", ":x/", "box", "photos/x/"},
		{"ann@box:photos", ":/x", "box", "/x"},
		{"ann@box:photos", ":~", "box", "/"},
		{"berth://ann:secret@box:99/a%20b", ":c", "box", "a b/c"},
		{"[::1]", ":c", "::1", "c"},
	} {
		t.Setenv("BERTH_URL", c.env)
		got, err := parseTarget(c.word)
		if err != nil || !got.remote || got.host != c.host || got.path != c.path || got.typed != c.word {
			t.Errorf("BERTH_URL=%s, %s: %+v, %v; want %s and %s", c.env, c.word, got, err, c.host, c.path)
		}
	}
	for _, env := range []string{"/srv", ":x", "./box:", "ftp://box/", "berth://a:secret@/"} {
		t.Setenv("BERTH_URL", env)
		if _, _, err := defaultTarget(); err == nil || !strings.Contains(err.Error(), "BERTH_URL") || strings.Contains(err.Error(), "secret") {
			t.Errorf("BERTH_URL=%s: %v; want an error", env, err)
		}
	}
}

func TestResolveHost(t *testing.T) {
	dir := newHome(t)
	fp := "sha256:" + strings.Repeat("ab", 32)
	writeHome(t, filepath.Join(dir, "config.toml"), `
[hosts.lab]
host = "192.168.1.20"
port = 2200
user = "ann"
jobs = 4
directory = "photos"
[hosts.pinned]
host = "127.0.0.1"
fingerprint = "SHA256:`+strings.ToUpper(strings.Repeat("ab", 32))+`"
[hosts.bare]
host = "10.0.0.7"
plain = true
[hosts.here]
host = "unix:/run/berth/berth.sock"
[hosts.six]
host = "[FE80::1%eth0]"
`, 0o600)
	writeHome(t, filepath.Join(dir, knownHostName), "[localhost]:99 "+fp+"\n", 0o600)
	for _, c := range []struct {
		word    string
		o       hostOptions
		address string
		user    string
		tls     bool
		back    bool
	}{
		{"box:", hostOptions{}, "box:2121", "me", true, false},
		{"box:", hostOptions{plain: true}, "box:2121", "me", false, false},
		{"ann@box:", hostOptions{port: 99}, "box:99", "ann", true, false},
		{"berth://box:98/", hostOptions{port: 99}, "box:99", "me", true, false},
		{"berth://box:98/", hostOptions{}, "box:98", "me", true, false},
		{"[::1]:", hostOptions{}, "[::1]:2121", "me", false, true},
		{"[::ffff:127.0.0.1]:", hostOptions{}, "[::ffff:127.0.0.1]:2121", "me", false, true},
		{"127.9.9.9:", hostOptions{}, "127.9.9.9:2121", "me", false, true},
		{"localhost:", hostOptions{}, "localhost:2121", "me", false, true},
		{"LocalHost.:", hostOptions{}, "LocalHost.:2121", "me", false, true},
		{"localhost:", hostOptions{plain: true}, "localhost:2121", "me", false, false},
		{"localhost:", hostOptions{tls: true}, "localhost:2121", "me", true, false},
		{"localhost:", hostOptions{fingerprint: fp}, "localhost:2121", "me", true, false},
		{"localhost:", hostOptions{port: 99}, "localhost:99", "me", true, false}, // remembered
		{"localhost.evil.example:", hostOptions{}, "localhost.evil.example:2121", "me", true, false},
		{"lab:", hostOptions{}, "192.168.1.20:2200", "ann", true, false},
		{"bob@lab:", hostOptions{port: 99}, "192.168.1.20:99", "bob", true, false},
		{"pinned:", hostOptions{}, "127.0.0.1:2121", "me", true, false},
		{"bare:", hostOptions{}, "10.0.0.7:2121", "me", false, false},
		{"bare:", hostOptions{tls: true}, "10.0.0.7:2121", "me", true, false},
		{"bare:", hostOptions{fingerprint: fp}, "10.0.0.7:2121", "me", true, false},
		{"here:", hostOptions{}, "/run/berth/berth.sock", "me", false, false},
		{"unix:/run/b.sock:", hostOptions{}, "/run/b.sock", "me", false, false},
		{"six:", hostOptions{}, "[FE80::1%eth0]:2121", "me", true, false},
	} {
		target, err := parseTarget(c.word)
		if err != nil {
			t.Fatal(err)
		}
		h, err := resolveHost(target, c.o)
		if err != nil {
			t.Errorf("%s %+v: %v", c.word, c.o, err)
			continue
		}
		if h.address != c.address || h.user != c.user || h.tls != c.tls || h.mayFallBack != c.back {
			t.Errorf("%s %+v = %s, user %s, tls %v, may fall back %v; want %s, %s, %v, %v", c.word, c.o, h.address, h.user, h.tls, h.mayFallBack, c.address, c.user, c.tls, c.back)
		}
		if h.proof() != (h.network == "unix") {
			t.Errorf("%s: proof() = %v", c.word, h.proof())
		}
		switch c.word {
		case "lab:":
			if h.jobs != 4 || h.base != "photos" || !h.userSaid || h.name != "lab" {
				t.Errorf("lab: %+v", h)
			}
		case "six:":
			if h.pin != "[fe80::1%eth0]:2121" || h.serverName != "fe80::1" {
				t.Errorf("six: pin %s, server name %s", h.pin, h.serverName)
			}
		case "pinned:":
			if h.fingerprint != fp {
				t.Errorf("pinned: fingerprint %s", h.fingerprint)
			}
		}
	}
	for _, c := range []struct {
		word string
		o    hostOptions
		want string
	}{
		{"box:", hostOptions{plain: true, ca: "x"}, "--plain means no TLS"},
		{"box:", hostOptions{plain: true, key: "x"}, "--key needs TLS"},
		{"box:", hostOptions{port: 70000}, "not between 1 and 65535"},
		{"box:", hostOptions{fingerprint: "abc"}, "--fingerprint: "},
		{"box:", hostOptions{ca: "/nowhere"}, "certificates in /nowhere: no such file"},
		{"box:", hostOptions{ca: filepath.Join(dir, "config.toml")}, "no certificate in it"},
		{"box:", hostOptions{key: "/no where"}, "make one with berth keygen -f '/no where'"},
		{"./box", hostOptions{}, "./box is no box"},
		{"here:", hostOptions{port: 2}, "is a unix socket"},
		{"unix:/run/b.sock:", hostOptions{tls: true}, "is a unix socket"},
	} {
		target, _ := parseTarget(c.word)
		if _, err := resolveHost(target, c.o); err == nil || !strings.Contains(err.Error(), c.want) || exitCode(err) != exitUsage {
			t.Errorf("%s %+v: %v; want an error with %q", c.word, c.o, err, c.want)
		}
	}
}

func TestHostConfigMistakesHaveLines(t *testing.T) {
	dir := newHome(t)
	file := filepath.Join(dir, "config.toml")
	writeHome(t, file, `[hosts.box]
prot = 2122
port = 70000
fingerprint = "abc"
host = "box:2122"
jobs = "4"

[hosts.lab]
plain = true
key = "id.pem"

[hosts."a b"]
[hosts.sock]
host = "unix:berth.sock"
[host.x]
`, 0o600)
	target, err := parseTarget("box:x")
	if err != nil {
		t.Fatal(err)
	}
	_, err = resolveHost(target, hostOptions{})
	if err == nil || exitCode(err) != exitUsage {
		t.Fatalf("resolveHost: %v", err)
	}
	lines := strings.Split(err.Error(), "\n")
	for i, want := range []string{
		`:2: hosts.box.prot: unknown key; did you mean "port"?`,
		`:3: hosts.box.port: 70000 is not`,
		`:4: hosts.box.fingerprint: "abc" is no certificate fingerprint`,
		`:5: hosts.box.host: "box:2122" is not a name or an address`,
		`:6:8: hosts.box.jobs: the string "4" where a whole number is needed`,
		`:9: hosts.lab.key: of no use with plain`,
		`:12: hosts."a b": "a b" is not the name of a box`,
		`:14: hosts.sock.host: unix: takes the absolute path`,
		`:15: host: unknown key; did you mean "hosts"?`,
	} {
		if i >= len(lines) || !strings.HasPrefix(lines[i], file+want) {
			t.Errorf("mistake %d: %q; want %s%s", i+1, lines[min(i, len(lines)-1)], file, want)
		}
	}
}

func TestNetrc(t *testing.T) {
	const text = `# a comment with machine box login no password no
machine box login ann password s3cret
machine BOX
	login "bob \"b\""
	password "with space\tand \\"	account x
machine hash login h password #1
machine mac login m password p macdef init
cd /machine box
machine box login evil password evil

machine after login a
machine nologin password only
default login anonymous password me@
`
	for _, c := range []struct{ machine, user, login, password string }{
		{"box", "", "ann", "s3cret"},
		{"box", "ann", "ann", "s3cret"},
		{"Box", `bob "b"`, `bob "b"`, "with space\tand \\"},
		{"box", "evil", "", ""},
		{"hash", "h", "h", "#1"},
		{"mac", "", "m", "p"},
		{"after", "", "a", ""},
		{"nologin", "zoe", "", "only"},
		{"other", "", "anonymous", "me@"},
		{"other", "anonymous", "anonymous", "me@"},
		{"other", "ann", "", ""},
	} {
		e := findNetrc(parseNetrc(text), []string{c.machine, "real." + c.machine}, c.user)
		if e == nil {
			e = &netrcEntry{}
		}
		if e.login != c.login || e.password != c.password {
			t.Errorf("%s for %q: %q, %q; want %q, %q", c.machine, c.user, e.login, e.password, c.login, c.password)
		}
	}
	// Whatever else is in there, it ends.
	for _, text := range []string{"machine", "login x", "password", `machine "box`, `machine "" login x`, "macdef", "default default", "machine box login \"a\\"} {
		if e := findNetrc(parseNetrc(text), []string{"other"}, ""); e != nil && !strings.HasPrefix(text, "default") {
			t.Errorf("%q gives %+v", text, e)
		}
	}
}

// asked makes a spec whose terminal has these answers, and notes what it is asked and told.
func asked(t *testing.T, h *hostSpec, answers ...string) *[]string {
	t.Helper()
	said := new([]string)
	h.notice = func(text string) { *said = append(*said, text) }
	h.ask = func(prompt string, echo bool) (string, error) {
		*said = append(*said, prompt)
		if len(answers) == 0 {
			return "", errNoTerminal
		}
		answer := answers[0]
		answers = answers[1:]
		return answer, nil
	}
	return said
}

func mustResolve(t *testing.T, word string, o hostOptions) *hostSpec {
	t.Helper()
	target, err := parseTarget(word)
	if err == nil {
		var h *hostSpec
		if h, err = resolveHost(target, o); err == nil {
			return h
		}
	}
	t.Fatalf("%s: %v", word, err)
	return nil
}

func TestPasswordsComeInOrder(t *testing.T) {
	dir := newHome(t)
	home := filepath.Dir(filepath.Dir(dir))
	next := func(h *hostSpec, want string, wantPrompted bool) {
		t.Helper()
		if got, prompted, err := h.nextPassword(); err != nil || got != want || prompted != wantPrompted {
			t.Errorf("nextPassword() = %q, %v, %v; want %q, %v", got, prompted, err, want, wantPrompted)
		}
	}
	h := mustResolve(t, "ann@box:", hostOptions{})
	said := asked(t, h, "typed", "again")
	next(h, "typed", true)
	next(h, "again", true)
	if want := []string{"ann@box's password: ", "ann@box's password: "}; !slices.Equal(*said, want) {
		t.Errorf("said %q; want %q", *said, want)
	}
	_, _, err := h.nextPassword()
	if exitCode(err) != exitUsage || !strings.Contains(err.Error(), "--password-file FILE, BERTH_PASSWORD, ~/.netrc, or a key made by berth keygen") {
		t.Errorf("without a terminal: %v", err)
	}

	netrc := filepath.Join(home, ".netrc")
	writeHome(t, netrc, "machine box login netuser password fromnetrc", 0o640)
	h = mustResolve(t, "box:", hostOptions{})
	if h.user != "netuser" || h.userSaid {
		t.Errorf("user %q, said %v; want netuser, not said", h.user, h.userSaid)
	}
	said = asked(t, h)
	next(h, "fromnetrc", false)
	if len(*said) != 1 || !strings.HasSuffix((*said)[0], "chmod 600 "+netrc) {
		t.Errorf("said %q; want a warning", *said)
	}
	if _, prompted, err := h.nextPassword(); err == nil || !prompted {
		t.Errorf("after a given one: %v, %v; want the terminal", prompted, err)
	}
	other := filepath.Join(home, "other netrc")
	writeHome(t, other, "machine box password elsewhere", 0o600)
	t.Setenv("NETRC", other)
	h = mustResolve(t, "zoe@box:", hostOptions{})
	asked(t, h)
	next(h, "elsewhere", false)

	t.Setenv("BERTH_PASSWORD", "fromenv")
	next(mustResolve(t, "box:", hostOptions{}), "fromenv", false)
	file := filepath.Join(home, "pw")
	writeHome(t, file, "first line\r\nsecond\n", 0o600)
	next(mustResolve(t, "box:", hostOptions{passwordFile: file}), "first line", false)
	next(mustResolve(t, "berth://a:url@box/", hostOptions{passwordFile: file}), "url", false)
	for text, want := range map[string]string{"\nx": "is empty", strings.Repeat("x", maxPassword+1): "longer than any password"} {
		writeHome(t, file, text, 0o600)
		if _, _, err := mustResolve(t, "box:", hostOptions{passwordFile: file}).nextPassword(); exitCode(err) != exitUsage || !strings.Contains(err.Error(), want) {
			t.Errorf("password file %.10q: %v; want %q", text, err, want)
		}
	}
	if _, _, err := mustResolve(t, "box:", hostOptions{passwordFile: "/nowhere"}).nextPassword(); exitCode(err) != exitUsage {
		t.Errorf("password file that is not there: %v", err)
	}
}

func TestWithoutAHome(t *testing.T) {
	newHome(t)
	t.Setenv("HOME", "")
	h := mustResolve(t, "ann@box:", hostOptions{})
	if h.certificate != nil || !h.tls {
		t.Errorf("%+v", h)
	}
	if _, err := addPin("[box]:2121", "sha256:"+strings.Repeat("ab", 32)); err == nil {
		t.Error("a pin was remembered nowhere")
	}
	if err := keygen(keygenOptions{}, nil); exitCode(err) != exitUsage {
		t.Errorf("keygen: %v", err)
	}
}

// hostPrompt makes the test binary ask on its terminal; its value is a prompt.
const hostPrompt = "BERTH_TEST_PROMPT"

// promptRace spares the second that a program built with -race waits at its end.
const promptRace = "GORACE=atexit_sleep_ms=0"

// TestPromptChild is the other side of TestPromptOnTerminal, and nothing by itself.
func TestPromptChild(t *testing.T) {
	prompt := os.Getenv(hostPrompt)
	if prompt == "" {
		return
	}
	line, err := askTerminal(prompt, strings.HasSuffix(prompt, "? "))
	fmt.Printf("<%s|%v|%d>\n", line, err == errNoTerminal, exitCode(err))
}

func TestPromptOnTerminal(t *testing.T) {
	for _, c := range []struct {
		name, prompt, keys string
		signal             syscall.Signal
		want, echoed       string
		killed             bool
	}{
		{name: "password", prompt: "ann@box's password: ", keys: "hunter2\r", want: "<hunter2|false|0>"},
		{name: "editing", prompt: "password: ", keys: "xx\x15hünter3\x7f2\r", want: "<hünter2|false|0>"},
		{name: "question", prompt: "two\nlines? ", keys: "yes\r", want: "<yes|false|0>", echoed: "yes"},
		{name: "ctrl-c", prompt: "password: ", keys: "hun\x03", killed: true},
		{name: "ctrl-d", prompt: "password: ", keys: "\x04", killed: true},
		{name: "sigterm", prompt: "password: ", signal: syscall.SIGTERM, want: "<|false|143>"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ptmx, tty, err := pty.Open()
			if err != nil {
				t.Fatal(err)
			}
			defer ptmx.Close()
			defer tty.Close()
			before, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(os.Args[0], "-test.run=^TestPromptChild$", "-test.v")
			cmd.Env = append(os.Environ(), hostPrompt+"="+c.prompt, promptRace)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 3}
			cmd.ExtraFiles = []*os.File{tty} // standard input is somewhere else, as it may be
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var screen []byte
			last := c.prompt[strings.LastIndexByte(c.prompt, '\n')+1:]
			for buf := make([]byte, 256); !strings.Contains(string(screen), strings.TrimSpace(last)); {
				n, err := ptmx.Read(buf)
				if err != nil {
					t.Fatalf("%v after %q", err, screen)
				}
				screen = append(screen, buf[:n]...)
			}
			if _, err := ptmx.WriteString(c.keys); err != nil {
				t.Fatal(err)
			}
			if c.signal != 0 {
				cmd.Process.Signal(c.signal)
			}
			err = cmd.Wait()
			// The SIGINT that it sends itself may come after its last word.
			status := cmd.ProcessState.Sys().(syscall.WaitStatus)
			ended := status.Signaled() && status.Signal() == syscall.SIGINT || strings.Contains(out.String(), "<|false|130>")
			if ended != c.killed {
				t.Errorf("ended with %v; want SIGINT: %v\n%s", err, c.killed, out.String())
			}
			if !strings.Contains(out.String(), c.want) {
				t.Errorf("printed %q; want %s", out.String(), c.want)
			}
			after, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
			if err != nil || *after != *before {
				t.Errorf("the terminal is left otherwise: %+v, was %+v (%v)", after, before, err)
			}
			tty.WriteString("\x00") // ends what there is to read
			for buf := make([]byte, 256); !slices.Contains(screen, 0); {
				n, err := ptmx.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				screen = append(screen, buf[:n]...)
			}
			if strings.Contains(string(screen), "hun") {
				t.Errorf("the password was shown: %q", screen)
			}
			if !strings.Contains(string(screen), c.echoed) {
				t.Errorf("shown %q; want %q in it", screen, c.echoed)
			}
		})
	}
}

func TestPromptWithoutTerminal(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestPromptChild$", "-test.v")
	cmd.Env = append(os.Environ(), hostPrompt+"=password: ", promptRace)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "<|true|1>") {
		t.Errorf("%v, %s; want errNoTerminal", err, out)
	}
}
