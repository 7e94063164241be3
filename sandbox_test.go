package main

// The sandbox from inside: real programs try to get out. What each of them tries is
// also tried without a sandbox, where it must succeed: else the test proves nothing.

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// tryVerb makes the test binary try something that no usual program does. It prints
// "reached" if it can.
const tryVerb = "__try"

func init() {
	if len(os.Args) != 4 || os.Args[1] != tryVerb {
		return
	}
	var err error
	switch os.Args[2] {
	case "ptrace":
		const seize = 0x4206 // ptrace(2): attach without a stop
		pid, _ := strconv.Atoi(os.Args[3])
		if _, _, e := unix.Syscall6(unix.SYS_PTRACE, seize, uintptr(pid), 0, 0, 0, 0); e != 0 {
			err = e
		}
	case "connect":
		_, err = net.Dial("unix", os.Args[3])
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("reached")
	os.Exit(0)
}

func needLandlock(t *testing.T) {
	t.Helper()
	if err := sandboxProblem("landlock"); err != nil {
		t.Skip(err)
	}
}

// boxed is p in a sandbox around its own directory.
func boxed(p *shProgram) *shProgram {
	p.Sandbox = &sandbox{Write: []rawText{p.Root}}
	return p
}

func TestSandboxKeepsProgramsIn(t *testing.T) {
	needLandlock(t)
	other, state := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(other, "secret"), []byte("secret\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", "@berth-test-"+strconv.Itoa(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	target := exec.Command("/bin/sleep", "300") // in the daemon's place
	if err := target.Start(); err != nil {
		t.Fatal(err)
	}
	defer target.Wait()
	defer target.Process.Kill()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, script string
		abi          int  // from which on it is kept in
		hopeless     bool // also without a sandbox, or not to be tried there
	}{
		{"another home", `cat "$OTHER/secret"`, 1, false},
		{"what is in another home", `ls "$OTHER"`, 1, false},
		{"write elsewhere", `echo x >"$OTHER/new"`, 1, false},
		{"make a directory elsewhere", `mkdir "$OTHER/dir"`, 1, false},
		{"delete elsewhere", `echo >"$OTHER/victim"; rm "$OTHER/victim"`, 1, false},
		{"cut elsewhere", `truncate -s 0 "$OTHER/secret2" && test -e "$OTHER/secret2"`, 3, false},
		{"the state", `echo x >"$STATE/new"`, 1, false},
		{"a list of /etc", `ls /etc`, 1, false},
		{"password hashes", `cat /etc/shadow`, 1, os.Geteuid() != 0},
		{"a symlink to them", `ln -s /etc/shadow s; cat s`, 1, os.Geteuid() != 0},
		{"a symlink to another home", `ln -s "$OTHER" o; cat o/secret`, 1, false},
		{"a hard link from another home", `ln "$OTHER/secret" mine && cat mine`, 1, false},
		{"a hard link to another home", `echo x >mine2; ln mine2 "$OTHER/theirs"`, 1, false},
		{"a rename to another home", `echo x >mine3; perl -e 'rename "mine3", "$ENV{OTHER}/three" or die $!'`, 1, false},
		{"the daemon's environment", `cat /proc/$TARGET/environ >/dev/null`, 1, false},
		{"the first process's environment", `cat /proc/1/environ`, 1, true},
		{"the daemon's files", `ls -l /proc/$TARGET/fd/0 && ls /proc/$TARGET/cwd/.`, 1, false},
		{"the daemon's root", `cat /proc/$TARGET/root"$OTHER/secret"`, 1, false},
		{"the daemon's memory", `"$SELF" ` + tryVerb + ` ptrace $TARGET`, 1, false},
		{"a signal to the daemon", `kill -CONT $TARGET`, landlockScopes, false},
		{"an abstract socket", `"$SELF" ` + tryVerb + ` connect "$SOCKET"`, landlockScopes, false},
		{"a mount", `mount -t tmpfs none .`, 1, true},
		{"a mount of its own", `unshare -rm sh -c 'mount --bind "$OTHER" . && cat ./secret'`, 1, true},
		{"root of a namespace", `unshare -r cat /etc/shadow`, 1, true},
		{"a device", `mknod d b 8 0`, 1, true},
		{"a new root", `chroot / true`, 1, true},
		{"a kernel setting", `echo x >/proc/sys/kernel/domainname`, 1, true},
		{"the memory killer", `echo 501 >/proc/self/oom_score_adj`, 1, false},
		{"another's sleep", `chown 12345 . && test "$(stat -c %u .)" = 12345`, 1, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if landlockABI() < c.abi {
				t.Skipf("Landlock ABI %d, and this needs %d", landlockABI(), c.abi)
			}
			for _, inside := range []bool{true, false} {
				if !inside && c.hopeless {
					continue
				}
				for _, name := range []string{"new", "dir", "theirs", "three"} {
					os.Remove(filepath.Join(other, name))
				}
				os.Remove(filepath.Join(state, "new"))
				os.WriteFile(filepath.Join(other, "secret2"), []byte("x"), 0o666)
				var out strings.Builder
				p := newShProgram(t, "{ "+c.script+"; } 2>&1 && echo reached", &out)
				if inside {
					boxed(p).Sandbox.Read = []rawText{rawText(self)}
				}
				p.Env = append(p.Env, rawTexts([]string{"OTHER=" + other, "STATE=" + state, "SELF=" + self,
					fmt.Sprint("TARGET=", target.Process.Pid), "SOCKET=" + listener.Addr().String()})...)
				r := p.run(t.Context())
				if r.err != nil || strings.Contains(out.String(), "not found") {
					t.Fatalf("sandbox %v: %+v\n%s", inside, r, &out)
				}
				if reached := strings.Contains(out.String(), "reached"); reached == inside {
					t.Errorf("sandbox %v: reached %v\n%s", inside, reached, &out)
				}
			}
		})
	}
	if secret, err := os.ReadFile(filepath.Join(other, "secret")); string(secret) != "secret\n" {
		t.Errorf("the secret is %q, %v", secret, err)
	}
}

// What programs need does work in the sandbox.
func TestSandboxLetsProgramsWork(t *testing.T) {
	needLandlock(t)
	for name, script := range map[string]string{
		"home":      `mkdir -p a/b && echo x >a/b/c && mv a/b/c d && ln d e && ln -s d f && cat f && rm -r a d e f && mkfifo p && touch t && chmod 700 t`,
		"own tool":  `printf '#!/bin/sh\nexit 0\n' >tool && chmod +x tool && ./tool`,
		"devices":   `head -c 10 /dev/urandom >/dev/null && echo x | tee /dev/stderr /dev/stdout >/dev/null && dd if=/dev/zero of=z bs=10 count=1`,
		"processes": `ps | grep -q ps; cat /proc/self/status /proc/loadavg /proc/meminfo && cat /sys/kernel/mm/transparent_hugepage/enabled || test ! -e /sys/kernel/mm`,
		"names":     `id && getent passwd root && getent hosts localhost && date && ls -l /bin/sh`,
		"signals":   `sleep 100 & kill $! && ! wait $!`,
		"pipes":     `seq 1000 | sort -n | tail -n 1 | grep -q 1000`,
		"here":      "cat <<EOF\nx\nEOF\n",
	} {
		var out strings.Builder
		if r := boxed(newShProgram(t, "set -e; exec 2>&1; "+script, &out)).run(t.Context()); !r.ok() {
			t.Errorf("%s: %+v\n%s", name, r, &out)
		}
	}
}

func TestSandboxedProgramHasNothing(t *testing.T) {
	needLandlock(t)
	if os.Geteuid() == 0 {
		was, err := unix.Getgroups()
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Setgroups([]int{4242}); err != nil {
			t.Skip("setgroups:", err)
		}
		defer syscall.Setgroups(was)
	}
	signal.Ignore(unix.SIGHUP, unix.SIGUSR1) // as nohup(1) would
	defer signal.Reset(unix.SIGHUP, unix.SIGUSR1)
	var out strings.Builder
	r := boxed(newShProgram(t, `cat /proc/self/status; echo "Files: $(echo /proc/self/fd/[012])"
echo "Core: $(ulimit -c)"; echo "Open: $(ulimit -n)"; echo "Umask: $(umask)"; echo "Score: $(cat /proc/self/oom_score_adj)"`, &out)).run(t.Context())
	if !r.ok() {
		t.Fatalf("run: %+v\n%s", r, &out)
	}
	const none = "0000000000000000"
	want := map[string]string{
		"NoNewPrivs": "1", "CapInh": none, "CapPrm": none, "CapEff": none, "CapAmb": none,
		"SigBlk": none, "SigIgn": none, "Core": "0", "Open": strconv.Itoa(programFiles), "Umask": "0022", "Score": programOOMScore,
	}
	if os.Geteuid() == 0 {
		want["CapBnd"], want["Groups"] = none, ""
	}
	for line := range strings.Lines(out.String()) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if w, ok := want[key]; ok {
			if value = strings.TrimSpace(value); value != w {
				t.Errorf("%s is %q; want %q", key, value, w)
			}
			delete(want, key)
		}
	}
	if len(want) > 0 {
		t.Errorf("not seen: %v in\n%s", want, &out)
	}
}

// Without a sandbox a program has what berth has: hooks mount, mail and restart.
func TestProgramWithoutSandboxKeepsPrivileges(t *testing.T) {
	status := func(data string) (kept []string) {
		for line := range strings.Lines(data) {
			if strings.HasPrefix(line, "Cap") || strings.HasPrefix(line, "NoNewPrivs") {
				kept = append(kept, line)
			}
		}
		return kept
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: who has no capabilities has none to lose")
	}
	var out strings.Builder
	if r := newShProgram(t, "cat /proc/self/status", &out).run(t.Context()); !r.ok() {
		t.Fatalf("run: %+v", r)
	}
	own, err := os.ReadFile("/proc/self/status")
	if got, want := status(out.String()), status(string(own)); err != nil || !slices.Equal(got, want) {
		t.Errorf("it has %q, and berth %q, %v", got, want, err)
	}
}

// A directory that the user planted does not lead the program out of his home, and
// one within it is where it says.
func TestProgramDirectory(t *testing.T) {
	var out strings.Builder
	p := newShProgram(t, "pwd -P", &out)
	other := t.TempDir()
	if err := os.MkdirAll(filepath.Join(p.dir, "a/b"), 0o700); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"out": other, "up": "..", "in": "a/b", "file": "/etc/passwd"} {
		if err := os.Symlink(to, filepath.Join(p.dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(p.dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, good := range map[string]bool{"a/b": true, "in": true, "out": false, "up": false, "../": false, other: false, "missing": false, "file": false, "fifo": false} {
		out.Reset()
		p.Dir = rawText(dir)
		r := p.run(t.Context())
		if r.ok() != good || !good && (r.reason != programStartFailed || r.exit != -1 || out.Len() > 0) {
			t.Errorf("in %s: %+v, %q; want success %v", dir, r, &out, good)
		}
		if real, err := filepath.EvalSymlinks(filepath.Join(p.dir, "a/b")); good && (strings.TrimSpace(out.String()) != real || err != nil) {
			t.Errorf("in %s: it is in %q; want %q, %v", dir, &out, real, err)
		}
	}
}

func TestSandboxNeedsLandlock(t *testing.T) {
	const sentence = `this kernel has no Landlock to keep commands in their user's home: use Linux 5.13 or later with "landlock" ` +
		`in its lsm= list, in a container also an engine whose seccomp profile lets Landlock through, or run commands without by exec.sandbox = "best-effort" or "off"`
	for _, c := range []struct {
		mode string
		abi  int
		ok   bool
	}{{"landlock", 0, false}, {"landlock", 1, true}, {"best-effort", 0, true}, {"off", 0, true}} {
		err := sandboxProblemAt(c.mode, c.abi)
		if (err == nil) != c.ok || err != nil && err.Error() != sentence {
			t.Errorf("%s with ABI %d: %v", c.mode, c.abi, err)
		}
	}
	p := boxed(newShProgram(t, ": >ran", nil))
	l := testLauncher()
	l.abi = func() int { return 0 }
	if r := l.run(t.Context(), p.program, p.io); r.reason != programStartFailed || r.err == nil || r.err.Error() != sentence {
		t.Errorf("run: %+v", r)
	}
	if _, err := os.Stat(filepath.Join(p.dir, "ran")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("it ran")
	}
	p.Sandbox.BestEffort = true
	if r := l.run(t.Context(), p.program, p.io); !r.ok() {
		t.Errorf("run with best effort: %+v", r)
	}
}

// Every ABI that berth knows has a set of rights that go-landlock takes: none is
// asked for that it does not have.
func TestLandlockVersions(t *testing.T) {
	for abi, c := range landlockVersions {
		if abi > 0 && (c.HandledAccessFS == 0 || (c.Scoped != 0) != (abi >= landlockScopes)) {
			t.Errorf("ABI %d: %v", abi, c)
		}
	}
	if landlockVersions[1].HandledAccessFS&landlockWriteFS == landlockWriteFS {
		t.Error("ABI 1 has them all")
	}
}

func TestHelperByHand(t *testing.T) {
	var errs strings.Builder
	if code := run([]string{helperVerb}, nil, nil, &errs); code != exitUsage || !strings.Contains(errs.String(), "berth calls this itself") {
		t.Errorf("berth %s: %d, %q", helperVerb, code, &errs)
	}
}
