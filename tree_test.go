package main

// Trees of processes that try to get away, from a berth that owns its children: a
// process of its own, since a test has children of others.

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ownerVerb makes the test binary a berth that owns its children and runs one
// program, from stdin, whose output is its own; a line on stderr tells how it went.
const ownerVerb = "__owner"

type ownerReport struct {
	Reason   programEnd
	Exit     int
	Left     bool
	Took     time.Duration
	Children bool // there were some when nothing was looked after any more
	Groups   int  // cgroups left
	Ours     bool // whether the program was told from others while it ran
}

func init() {
	if len(os.Args) != 2 || os.Args[1] != ownerVerb {
		return
	}
	var p program
	if err := json.NewDecoder(os.Stdin).Decode(&p); err != nil {
		panic(err)
	}
	l := newLauncher(slog.New(slog.DiscardHandler), true)
	rep := ownerReport{Ours: true}
	r := l.run(context.Background(), p, programIO{output: func(_ byte, b []byte) error {
		for _, w := range bytes.Fields(b) {
			if pid, err := strconv.Atoi(string(w)); err == nil && !l.ours(pid) {
				rep.Ours = false
			}
		}
		os.Stdout.Write(b)
		return nil
	}})
	if l.ours(os.Getpid()) || l.ours(os.Getppid()) || !l.ours(1<<30) {
		rep.Ours = false
	}
	rep.Reason, rep.Exit, rep.Left, rep.Took = r.reason, r.exit, r.left, r.took
	for end := time.Now().Add(5 * kinLook); time.Now().Before(end); {
		l.kin.mu.Lock()
		tidying := l.kin.tidying
		l.kin.mu.Unlock()
		if !tidying {
			break
		}
		unix.Poll(nil, 10)
	}
	_, err := peekChildren()
	rep.Children = err != unix.ECHILD
	if l.unit != nil {
		dirs, _ := filepath.Glob(l.unit.dir + "/" + childGroupPrefix + "*")
		rep.Groups = len(dirs)
	}
	json.NewEncoder(os.Stderr).Encode(rep)
	os.Exit(0)
}

// runOwned runs p there.
func runOwned(t *testing.T, p program, wrap ...string) (out string, rep ownerReport) {
	t.Helper()
	spec, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	argv := append(slices.Clone(wrap), os.Args[0], ownerVerb)
	cmd := exec.Command(argv[0], argv[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(spec), &stdout, &stderr
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0") // with -race, an exit takes a second
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	if err := json.Unmarshal(stderr.Bytes(), &rep); err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	return stdout.String(), rep
}

var getaways = []struct {
	name, script string
	n            int // process numbers that it prints
	tool         string
}{
	{"in the background", `sleep 300 & echo $!; echo $$`, 2, ""},
	{"two forks", `(sleep 300 & echo $!) & wait $!`, 1, ""},
	{"a session", `setsid sh -c 'echo $$; touch ready; exec sleep 300' & until [ -e ready ]; do :; done`, 1, "setsid"},
	{"a daemon", `(setsid sh -c '(trap "" TERM HUP INT; exec sleep 300) & echo $!; touch ready' >out 2>&1 </dev/null &); until [ -e ready ]; do :; done; cat out`, 1, "setsid"},
	{"no environment", `(setsid env -i /bin/sh -c 'trap "" TERM HUP; echo $$ >out; /bin/sleep 300; /bin/sleep 300' </dev/null >/dev/null 2>&1 &); until [ -s out ]; do :; done; cat out`, 1, "setsid"},
	{"another limit", `(setsid prlimit --rttime=1000:1000 setsid sh -c 'echo $$ >out; exec sleep 300' </dev/null >/dev/null 2>&1 &); until [ -s out ]; do :; done; cat out`, 1, "prlimit"},
	{"stopped", `(setsid sh -c 'echo $$ >out; kill -STOP $$' </dev/null >/dev/null 2>&1 &); until [ -s out ]; do :; done; cat out`, 1, "setsid"},
	{"many", `i=0; while [ $i -lt 40 ]; do (setsid sleep 300 & echo $!); i=$((i+1)); done`, 40, "setsid"},
}

func TestOwnedProgramsLeaveNothing(t *testing.T) {
	for _, c := range getaways {
		t.Run(c.name, func(t *testing.T) {
			if _, err := exec.LookPath(c.tool); c.tool != "" && err != nil {
				t.Skip(err)
			}
			p := newShProgram(t, c.script, io.Discard)
			p.Grace = 200 * time.Millisecond
			if landlockABI() > 0 {
				boxed(p)
			}
			out, rep := runOwned(t, p.program)
			if rep.Reason != programExited || rep.Exit != 0 || rep.Left || rep.Took > 30*time.Second || rep.Children || !rep.Ours {
				t.Errorf("run: %+v\n%s", rep, out)
			}
			wantGone(t, out, c.n)
		})
	}
}

// The same with a cgroup for each program, as under systemd with Delegate=yes.
func TestOwnedProgramsInCgroups(t *testing.T) {
	dir := testCgroup(t)
	for _, c := range getaways {
		t.Run(c.name, func(t *testing.T) {
			if _, err := exec.LookPath(c.tool); c.tool != "" && err != nil {
				t.Skip(err)
			}
			p := newShProgram(t, "cat /proc/self/cgroup >group; "+c.script, io.Discard)
			p.Grace = 200 * time.Millisecond
			out, rep := runOwned(t, p.program, "/bin/sh", "-c", fmt.Sprintf(`echo $$ >%s/cgroup.procs && exec "$@"`, dir), "sh")
			if rep.Reason != programExited || rep.Exit != 0 || rep.Left || rep.Took > 30*time.Second || rep.Children || rep.Groups != 0 {
				t.Errorf("run: %+v\n%s", rep, out)
			}
			wantGone(t, out, c.n)
			if group, err := os.ReadFile(filepath.Join(p.dir, "group")); err != nil || !strings.Contains(string(group), "/command-") {
				t.Errorf("it ran in %s, %v", group, err)
			}
		})
	}
}

// testCgroup makes a cgroup that is delegated.
func testCgroup(t *testing.T) string {
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(mount, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		dir, err := os.MkdirTemp(mount, "berth-test-")
		if err != nil {
			t.Skip(err)
		}
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup((&childGroup{dir: dir, f: f}).remove)
		if err := unix.Setxattr(dir, "user.delegate", []byte("1"), 0); err != nil {
			t.Skip("setxattr:", err)
		}
		return dir
	}
	t.Skip("no cgroup2")
	return ""
}

// A berth that a program runs numbers its own below that program's number.
func TestKinshipNumbers(t *testing.T) {
	for _, c := range []struct{ own, base, step uint64 }{
		{math.MaxUint64, kinTop, kinStep}, {kinTop, kinTop, kinStep}, {kinTop - 3*kinStep, kinTop - 3*kinStep, 1},
		{kinTop - 3*kinStep - 1, 0, 0}, {200_000, 0, 0}, {0, 0, 0},
	} {
		k := kinship{}
		k.numberBelow(c.own)
		if k.base != c.base || k.step != c.step {
			t.Errorf("below %d: base %d, step %d; want %d, %d", c.own, k.base, k.step, c.base, c.step)
		}
	}
	outer, inner := kinship{}, kinship{}
	outer.numberBelow(kinTop)
	inner.numberBelow(outer.limit(7))
	for _, limit := range []uint64{outer.limit(7), inner.limit(1), inner.limit(kinNumber - 1)} {
		if n, marked := outer.numberAt(limit); n != 7 || !marked {
			t.Errorf("limit %d is of number %d, %v; want 7", limit, n, marked)
		}
	}
	if n, marked := inner.numberAt(inner.limit(9)); n != 9 || !marked {
		t.Errorf("the inner number is %d, %v; want 9", n, marked)
	}
	if n, marked := inner.numberAt(outer.limit(7)); n != 0 || marked {
		t.Errorf("the inner berth is number %d, %v", n, marked)
	}
}

// Another berth on the machine may have a program of the same number.
func TestKinshipDescent(t *testing.T) {
	child := exec.Command("/bin/sh", "-c", "sleep 300 & echo $!; wait")
	child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer unix.Kill(-child.Process.Pid, unix.SIGKILL)
	var grandchild int
	if _, err := fmt.Fscan(out, &grandchild); err != nil {
		t.Fatal(err)
	}
	for pid, want := range map[int]bool{child.Process.Pid: true, grandchild: true, os.Getpid(): false, os.Getppid(): false, 1: false, 1 << 30: false} {
		if got := descends(pid); got != want {
			t.Errorf("process %d: %v", pid, got)
		}
	}
}
