package main

// The life of an upload cut between every two of its steps (contract section 5). The
// steps are the system calls that change names, content or marks. For each kind of
// operation the table in crashpoints_table_test.go says which they are, in order, and
// what is there after a crash in front of each; strace first watches the real server to
// see that the table names them all, and then kills it in front of one after the other.
// In the same way the calls are made to fail, one by one.
//
// strace's signal=KILL is delivered when the call is entered, and the kernel then does
// not execute it: "cut before renameat" is a server that dies with everything done up
// to the rename, and not the rename.
//
// It knows how to watch, cut and fail a call, and the names of contract section 5, and
// not what should come of it; the server is a process like any other. What strace
// counts, it counts by thread: so a call is told by its path, and where even that is not
// enough what was hit is looked up in the trace, and another try made if it was
// something else.

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// stepsCalls are the system calls that change what a crash leaves, and write for
	// the replies in between.
	stepsCalls = "openat,flock,fchmod,fsetxattr,fremovexattr,write,pwrite64,splice,copy_file_range,ftruncate,fallocate," +
		"fdatasync,fsync,syncfs,renameat,renameat2,linkat,unlinkat,mkdirat"

	stepsNth   = 12               // of the like calls of a thread, which the right one may be
	stepsTries = 4 * stepsNth     // until strace has hit it
	stepsWait  = 10 * time.Second // for a recovery; it takes milliseconds
)

// TestCrashBetweenSteps: contract section 5, "kill -9 at any moment".
func TestCrashBetweenSteps(t *testing.T) {
	strace := stepsStrace(t)
	for _, op := range stepsOps() {
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			w := newStepsWorld(t, strace, op.fast)
			if got, want := w.watch(&op), op.names(); !slices.Equal(got, want) {
				t.Fatalf("the steps are\n\t%s\nand the table has\n\t%s", strings.Join(got, ", "), strings.Join(want, ", "))
			}
			var table strings.Builder
			for i, row := range op.steps {
				left := w.crash(&op, i)
				fmt.Fprintf(&table, "\n%-40s before %-24s %s", op.name, row.step, stepsOr(left, "nothing"))
				if left != row.left {
					t.Errorf("killed before %q: there is %q; want %q", row.step, left, row.left)
				}
			}
			t.Log(table.String())
		})
	}
}

// TestCrashInRecovery: a server that dies while it ends what the one before it has left
// leaves the next one no more than that to do.
func TestCrashInRecovery(t *testing.T) {
	strace := stepsStrace(t)
	ops := stepsOps()
	for _, test := range stepsRecoveries() {
		op := &ops[slices.IndexFunc(ops, func(op stepsOp) bool { return op.name == test.op })]
		t.Run(op.name+", cut before "+test.cut, func(t *testing.T) {
			t.Parallel()
			w := newStepsWorld(t, strace, op.fast)
			var table strings.Builder
			for _, row := range test.steps {
				left := w.crashTwice(op, test.cut, row.step)
				fmt.Fprintf(&table, "\n%-40s recovery before %-24s %s", op.name, row.step, stepsOr(left, "nothing"))
				if left != row.left {
					t.Errorf("killed before %q, and recovery before %q: there is %q; want %q", test.cut, row.step, left, row.left)
				}
			}
			t.Log(table.String())
		})
	}
}

// TestStepsThatFail: an error of the disk has its reply, and costs nothing but the
// upload it hits.
func TestStepsThatFail(t *testing.T) {
	strace := stepsStrace(t)
	for _, op := range stepsOps() {
		if len(op.failures) == 0 {
			continue
		}
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			w := newStepsWorld(t, strace, op.fast)
			var table strings.Builder
			for _, f := range op.failures {
				code, left := w.fail(&op, f)
				fmt.Fprintf(&table, "\n%-40s %-24s %-7s %s  %s", op.name, f.step, f.errno, code, stepsOr(left, "nothing"))
				if code != f.code || left != f.left {
					t.Errorf("%s at %q: reply %s and %q; want %s and %q", f.errno, f.step, code, left, f.code, f.left)
				}
			}
			t.Log(table.String())
		})
	}
}

func stepsOr(text, empty string) string {
	if text == "" {
		return empty
	}
	return text
}

// stepsStrace finds strace, and the right to use it on another process.
func stepsStrace(t *testing.T) string {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err == nil && os.Geteuid() != 0 {
		err = errors.New("strace on a running process wants root")
	}
	if err != nil {
		if os.Getenv("BERTH_REQUIRE_ROOT") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return strace
}

// --- a server and its directory ---

// A stepsWorld is a server that is killed and started again on the same home and state.
type stepsWorld struct {
	t      *testing.T
	strace string
	box    *ftpBox
	config string
	server *process
	client *ftpClient
	inode  string // of the client's control connection, at the server's end
	dir    string // where the operation at hand takes place
	made   int
}

func newStepsWorld(t *testing.T, strace string, fast bool) *stepsWorld {
	more := "log.level = \"debug\"\n" + daemonListen
	if fast {
		more += "transfer.durable = false\n"
	}
	file, b := writeConfig(t, more)
	w := &stepsWorld{t: t, strace: strace, box: b, config: file}
	w.start()
	return w
}

func (w *stepsWorld) state() string { return filepath.Join(w.box.dir, "state") }

// start starts the server and waits until it has counted the home, unless the last one
// left the ledger in order and it need not.
func (w *stepsWorld) start() {
	w.t.Helper()
	_, inOrder, _ := readLedger(filepath.Join(w.state(), ledgerName))
	w.server = startBerth(w.t, nil, nil, "serve", "--config", w.config)
	counted, serving := inOrder, false
	timeout := time.After(replyTime)
	for !counted || !serving {
		select {
		case line, ok := <-w.server.lines:
			if !ok {
				w.t.Fatalf("berth ended: %s", w.server.rest.String())
			}
			switch line["msg"] {
			case "home counted":
				counted = true
			case "serving":
				serving = true
				for _, f := range strings.Fields(line["listeners"].(string)) {
					kind, addr, _ := strings.Cut(f, "=")
					w.server.addrs[kind] = addr
				}
			}
		case <-timeout:
			w.t.Fatal("berth does not get ready")
		}
	}
	go func(log <-chan map[string]any) { // or the server waits for a reader of it
		for range log {
		}
	}(w.server.lines)
	w.client = w.server.dial("control").login()
	w.inode = w.control()
}

// kill makes sure that the server is dead, and waits for its end.
func (w *stepsWorld) kill() {
	w.server.cmd.Process.Kill() // it may have ended by itself
	for range w.server.lines {
	}
	w.server.cmd.Wait()
}

// control finds the inode of the server's end of the control connection, as
// /proc/PID/fd shows it.
func (w *stepsWorld) control() string {
	w.t.Helper()
	port := func(a net.Addr) string { return fmt.Sprintf(":%04X", a.(*net.TCPAddr).Port) }
	mine, its := port(w.client.bare.LocalAddr()), port(w.client.bare.RemoteAddr())
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", w.server.cmd.Process.Pid))
	if err != nil {
		w.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
		f := strings.Fields(line)
		if len(f) > 9 && strings.HasSuffix(f[1], its) && strings.HasSuffix(f[2], mine) && f[9] != "0" {
			return "socket:[" + f[9] + "]"
		}
	}
	w.t.Fatal("the server has no end of the control connection")
	return ""
}

// prepare makes a new directory for op, goes there and leads up to it.
func (w *stepsWorld) prepare(op *stepsOp) {
	w.t.Helper()
	c := w.client
	w.made++
	name := fmt.Sprintf("d%d", w.made)
	w.dir = filepath.Join(w.box.home, name)
	c.cmd("MKD /"+name, "257 *")
	c.cmd("CWD /"+name, "250 *")
	if op.old != nil {
		w.stored("STOR x", op.old, "226 *")
	}
	if n := max(op.aside, op.part); n > 0 {
		c.cmd("ALLO 1000000", "200 *")
		w.stored("STOR x", op.want[:n], "426 *")
	}
	if op.also != nil {
		w.stored("STOR y", op.also, "226 *")
	}
	if op.sub {
		c.cmd("MKD sub", "257 *")
	}
	if op.data != nil {
		c.cmd("EPSV", "229 *")
	}
	for _, line := range op.before {
		c.send(line + "\r\n")
		if code, text := c.reply(); code != codeNeedMore && code != codeOK && code != codeFileDone {
			w.t.Fatalf("%s: %s", line, text)
		}
	}
	if op.command == "" {
		c.cmd("QUIT", "221 *")
		c.closed()
	}
}

func (w *stepsWorld) stored(command string, content []byte, pattern string) {
	w.t.Helper()
	if got := w.client.store(command, string(content)); !wildcard(pattern, got) {
		w.t.Fatalf("%s: %q; want %q", command, got, pattern)
	}
}

// run does the operation and returns the reply's line, "" if none came. opened is
// called between the 150 and the first byte.
func (w *stepsWorld) run(op *stepsOp, opened func()) string {
	w.t.Helper()
	c := w.client
	if op.command == "" {
		w.server.signal(syscall.SIGTERM)
		for range w.server.lines { // until it has ended
		}
		return ""
	}
	var data io.WriteCloser
	if op.data != nil {
		data = c.open()
	}
	c.send(op.command + "\r\n")
	line, err := c.line(replyTime)
	if err == nil && data != nil && strings.HasPrefix(line, "150") {
		opened()
		data.Write(op.data) // where this fails, the reply tells
		data.Close()
		line, err = c.line(replyTime)
	}
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			w.t.Fatalf("%s: no reply", op.command)
		}
		return ""
	}
	return line
}

// staging are the paths that have the role, "stage" or "lifted".
func (w *stepsWorld) staging(role string) []string {
	w.t.Helper()
	names, err := filepath.Glob(filepath.Join(w.dir, stagePrefix+"*"))
	if err != nil {
		w.t.Fatal(err)
	}
	return slices.DeleteFunc(names, func(p string) bool { return w.role(p) != role })
}

// stage is the staging file of the upload that is running.
func (w *stepsWorld) stage() string {
	w.t.Helper()
	names := w.staging("stage")
	if len(names) != 1 {
		w.t.Fatalf("staging files: %q", names)
	}
	return names[0]
}

// look tells what the directory holds: "x old", "x new" or "x partial BYTES", "aside
// BYTES" for what is kept aside, "sub/" for a directory, and everything that is not as it
// should be.
func (w *stepsWorld) look(op *stepsOp) string {
	w.t.Helper()
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	var names, asides []string
	for _, e := range entries {
		file := filepath.Join(w.dir, e.Name())
		if e.IsDir() {
			names = append(names, e.Name()+"/")
			continue
		}
		content, err := os.ReadFile(file)
		if err != nil {
			w.t.Fatal(err)
		}
		marked, whole := stepsMarked(file), "new"
		switch {
		case op.old != nil && bytes.Equal(content, op.old):
			whole = "old"
		case !bytes.HasPrefix(op.want, content):
			whole = "MIXED"
		case len(content) != len(op.want):
			whole = "SHORT"
		}
		role := w.role(file)
		switch {
		case role == "stage", role == "lifted":
			names = append(names, fmt.Sprintf("%s %d", strings.ToUpper(role), len(content)))
		case role == "aside" && marked && bytes.HasPrefix(op.want, content):
			asides = append(asides, fmt.Sprintf("aside %d", len(content)))
		case role == "aside":
			asides = append(asides, fmt.Sprintf("ASIDE %d, %s, marked %v", len(content), whole, marked))
		case marked && bytes.HasPrefix(op.want, content):
			names = append(names, fmt.Sprintf("%s partial %d", role, len(content)))
		case marked:
			names = append(names, role+" MARKED "+whole)
		default:
			names = append(names, role+" "+whole)
		}
	}
	return strings.Join(append(names, asides...), ", ")
}

var stepsUnique = regexp.MustCompile(`^x\.[0-9a-f]{8}$`)

// role is how the tables call a path; "" for one that is none of theirs.
func (w *stepsWorld) role(p string) string {
	base := filepath.Base(p)
	switch {
	case p == w.dir:
		return "dir"
	case p == w.state():
		return "state"
	case filepath.Dir(p) == w.state() && strings.HasPrefix(base, ".berth-new-"):
		return "temp"
	case filepath.Dir(p) != w.dir && p != filepath.Join(w.state(), ledgerName):
		return ""
	case strings.HasPrefix(base, stagePrefix):
		if _, kind, target, _ := parseStage(base); kind == uploadCopied && target == "" {
			return "lifted" // what was kept aside, out of the way of a change
		}
		return "stage"
	case base == partialName("x"):
		return "aside"
	case stepsUnique.MatchString(base):
		return "x" // STOU's
	}
	return base
}

// settled waits until the home is in order: no staging file, a ledger that has what a
// walk finds, and no partial that the one who named it still holds.
func (w *stepsWorld) settled() {
	w.t.Helper()
	deadline := time.Now().Add(stepsWait)
	for {
		stages, walked := w.walk()
		w.client.send("SITE QUOTA\r\n")
		_, text := w.client.reply()
		if stages == 0 && strings.Contains(text, "\n "+walked.bytes) && strings.Contains(text, "\n "+walked.files) && w.unlocked() {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%d staging files are left; on the disk there are\n%s, %s; the ledger says\n%s\nthe directory holds\n%s",
				stages, walked.bytes, walked.files, text, stepsNames(w.dir))
		}
		runtime.Gosched()
	}
}

// unlocked tells whether nothing in the directory is locked: a recovery lets go of a
// partial only when its name is on the disk, and who resumes it before is told to wait.
func (w *stepsWorld) unlocked() bool {
	w.t.Helper()
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		f, err := os.Open(filepath.Join(w.dir, e.Name()))
		if err != nil {
			return false
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		f.Close()
		if err != nil {
			return false
		}
	}
	return true
}

func stepsNames(dir string) string {
	var names []string
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// stepsUsed is how SITE QUOTA begins to tell what a walk found.
type stepsUsed struct{ bytes, files string }

func (w *stepsWorld) walk() (stages int, used stepsUsed) {
	w.t.Helper()
	var size int64
	count := -1 // the home itself
	err := filepath.WalkDir(w.box.home, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went meanwhile
		}
		if err != nil {
			return err
		}
		count++
		if strings.HasPrefix(e.Name(), stagePrefix) {
			stages++
		}
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			size += info.Size()
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return stages, stepsUsed{fmt.Sprintf("bytes: %d used,", size), fmt.Sprintf("files: %d used,", count)}
}

// told checks that the client sees what is there, and that a partial can be continued
// from its end, and from nowhere else, to the whole content.
func (w *stepsWorld) told(op *stepsOp) {
	w.t.Helper()
	c := w.client
	c.cmd("CWD /"+filepath.Base(w.dir), "250 *")
	name := "x"
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	there, partial := false, int64(-1)
	for _, e := range entries {
		p := filepath.Join(w.dir, e.Name())
		info, err := os.Stat(p)
		if err != nil {
			w.t.Fatal(err)
		}
		role := w.role(p)
		if role == "x" {
			name, there = e.Name(), true
			content, err := os.ReadFile(p)
			if err != nil {
				w.t.Fatal(err)
			}
			c.cmd("SIZE "+name, fmt.Sprintf("213 %d", len(content)))
			if got := c.fetch("RETR " + name); got != string(content) {
				w.t.Errorf("RETR brings %d bytes that are not the file's %d", len(got), len(content))
			}
		}
		if role == "aside" || role == "x" && stepsMarked(p) {
			partial = info.Size()
		}
	}
	if !there {
		c.cmd("SIZE "+name, "550 *")
	}
	if partial < 0 {
		return
	}
	for _, wrong := range []int64{partial - 1, partial + 1} {
		if !w.hasAside() && wrong < partial {
			continue // into the middle of a partial of that name: its first bytes are kept
		}
		c.cmd("EPSV", "229 *")
		c.cmd(fmt.Sprintf("REST %d", wrong), "350 *")
		c.cmd("STOR "+name, fmt.Sprintf("554 *: %d bytes are here*", partial))
	}
	c.cmd(fmt.Sprintf("REST %d", partial), "350 *")
	w.stored("STOR "+name, op.want[partial:], "226 *")
	if got := w.look(op); got != "x new" && got != "x new, y new" && got != "x new, y old" {
		w.t.Errorf("resumed at %d: there is %q; want the whole new content", partial, got)
	}
	w.settled()
}

func (w *stepsWorld) hasAside() bool {
	_, err := os.Lstat(filepath.Join(w.dir, partialName("x")))
	return err == nil
}

func stepsMarked(file string) bool {
	var mark [1]byte
	_, err := unix.Getxattr(file, partialXattr, mark[:])
	return err == nil
}

// --- strace ---

// A stepsTracer is strace on the server.
type stepsTracer struct {
	w   *stepsWorld
	cmd *exec.Cmd
	log string
}

// attach starts strace with these arguments and waits until it is there.
func (w *stepsWorld) attach(args ...string) *stepsTracer {
	w.t.Helper()
	tr := &stepsTracer{w: w, log: filepath.Join(w.t.TempDir(), "trace")}
	args = append([]string{"-f", "-y", "-s", "300", "-e", "signal=none", "-o", tr.log, "-p", strconv.Itoa(w.server.cmd.Process.Pid)}, args...)
	tr.cmd = exec.Command(w.strace, args...)
	said, err := tr.cmd.StderrPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := tr.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		tr.cmd.Process.Kill()
		tr.cmd.Wait()
	})
	lines := bufio.NewReader(said)
	if line, err := lines.ReadString('\n'); !strings.Contains(line, "attached") {
		w.t.Fatalf("strace: %q, %v", line, err)
	}
	go io.Copy(io.Discard, lines)
	return tr
}

// end waits for strace to end, and returns the trace. It ends by itself with a server
// that died, and has to be told, and only then, to let a living one go: told while the
// server dies, strace 6.1 can stop for good.
func (tr *stepsTracer) end(died bool) string {
	tr.w.t.Helper()
	if !died {
		tr.cmd.Process.Signal(os.Interrupt)
	}
	tr.cmd.Wait()
	text, err := os.ReadFile(tr.log)
	if err != nil {
		tr.w.t.Fatal(err)
	}
	return string(text)
}

// follow is strace's choice of the call of a step: by its path, as far as that is known.
// phase is the operation's.
func (w *stepsWorld) follow(step string, phase int) (call string, args []string) {
	w.t.Helper()
	call, role, ok := strings.Cut(step, " ")
	if !ok {
		return "write", []string{"-e", "trace=write", "-P", w.inode} // a reply
	}
	args = []string{"-e", "trace=" + call}
	role, _, _ = strings.Cut(role, ">")
	path := ""
	switch {
	case role == "dir", role == "stage" && call == "openat":
		path = w.dir
	case role == "temp" || role == "state" || role == "stage" && phase == 1:
	case role == "stage":
		path = w.stage()
	case role == "lifted":
		path = w.dir // its name is made up on the way, unless a crash has left it
		if left := w.staging(role); len(left) == 1 {
			path = left[0]
		}
	case role == "aside":
		path = filepath.Join(w.dir, partialName("x"))
	default:
		path = filepath.Join(w.dir, role)
	}
	if path != "" {
		// The name as it stands in the call, and the file behind a descriptor.
		args = append(args, "-P", path, "-P", filepath.Base(path))
	}
	return call, args
}

var (
	stepsLine  = regexp.MustCompile(`^\d+ +(\w+)\((.*)$`)
	stepsToken = regexp.MustCompile(`<(/[^<>]*|socket:\[\d+\])>|"([^"]*)"`)
)

// A stepsCall is one line of a trace.
type stepsCall struct {
	step   string
	result string // from "= " on; "" if it had none
}

// calls reads from a trace the calls that the tables speak of; many writes of one
// kind in a row are one.
func (w *stepsWorld) calls(trace string) []stepsCall {
	var all []stepsCall
	for line := range strings.Lines(trace) {
		m := stepsLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		call, rest := m[1], m[2]
		var at, name []string
		for _, t := range stepsToken.FindAllStringSubmatch(rest, -1) {
			if t[1] != "" {
				at = append(at, t[1])
			} else {
				name = append(name, t[2])
			}
		}
		if len(at) == 0 {
			continue
		}
		role := func(i int) string {
			switch {
			case i >= len(name):
				return ""
			case strings.HasPrefix(name[i], "/"):
				return w.role(name[i])
			}
			return w.role(filepath.Join(at[min(i, len(at)-1)], name[i]))
		}
		step := ""
		switch call {
		case "openat":
			if strings.Contains(rest, "O_CREAT") {
				step = role(0)
			}
		case "unlinkat", "mkdirat":
			step = role(0)
		case "renameat", "renameat2", "linkat":
			if from, to := role(0), role(1); from != "" && to != "" {
				step = from + ">" + to
			}
		default:
			if at[0] == w.inode && len(name) > 0 && len(name[0]) > 3 {
				call, step = name[0][:3], "reply"
			} else {
				step = w.role(at[len(at)-1])
			}
		}
		if step == "" {
			continue
		}
		if step = call + " " + step; strings.HasSuffix(step, " reply") {
			step = call
		}
		result := ""
		if i := strings.LastIndex(rest, " = "); i >= 0 {
			result = rest[i+3:]
		}
		if call == "unlinkat" && strings.HasPrefix(result, "-1 ENOENT") {
			continue
		}
		if n := len(all); n > 0 && all[n-1].step == step && (call == "splice" || call == "write" || call == "copy_file_range") {
			continue
		}
		all = append(all, stepsCall{step, result})
	}
	return all
}

// stepsCut tells whether the last of the calls is that step's, and had no result.
func stepsCut(calls []stepsCall, step string) bool {
	if len(calls) == 0 {
		return false
	}
	last := calls[len(calls)-1]
	return last.step == step && (last.result == "" || last.result == "?")
}

// --- what is done to an operation ---

// watch does the operation once and tells its steps.
func (w *stepsWorld) watch(op *stepsOp) (steps []string) {
	w.t.Helper()
	w.prepare(op)
	tr := w.attach("-e", "trace="+stepsCalls)
	reply := w.run(op, func() {})
	for _, c := range w.calls(tr.end(reply == "")) {
		steps = append(steps, c.step)
	}
	if op.command == "" {
		w.server.ended(exitOK)
		w.start()
	}
	return steps
}

// crash does the operation on a server that dies before step number i, and tells what is
// there when the next one has recovered.
func (w *stepsWorld) crash(op *stepsOp, i int) (left string) {
	w.t.Helper()
	w.cut(op, i)
	w.start()
	w.settled()
	left = w.look(op)
	w.told(op)
	if temps, _ := filepath.Glob(filepath.Join(w.state(), ".berth-*")); len(temps) > 0 {
		w.t.Errorf("killed before %q: the state directory has %q left", op.steps[i].step, temps)
	}
	return left
}

// cut does the operation on a server that dies before step number i, and leaves what
// that leaves.
func (w *stepsWorld) cut(op *stepsOp, i int) {
	w.t.Helper()
	step, nth := op.steps[i].step, 1
	phase := op.phase(i, step)
	for _, before := range op.steps[:i] {
		if before.step == step {
			nth++
		}
	}
	for try := range stepsTries {
		w.prepare(op)
		var tr *stepsTracer
		attach := func() {
			call, args := w.follow(step, phase)
			tr = w.attach(append(args, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, nth+try%stepsNth))...)
		}
		opened := func() {}
		if phase == 1 {
			attach()
		} else {
			opened = attach
		}
		reply := w.run(op, opened)
		if tr == nil {
			w.t.Fatalf("killed before %q: %s is answered %q", step, op.command, reply)
		}
		hit := stepsCut(w.calls(tr.end(reply == "")), step)
		if strings.HasPrefix(reply, "2") && hit {
			w.t.Errorf("killed before %q: the client has %q all the same", step, reply)
		}
		w.kill()
		if hit {
			return
		}
		w.start()
	}
	w.t.Fatalf("strace did not hit %q in %d tries", step, stepsTries)
}

// crashTwice does the operation on a server that dies before the first step, starts another
// that dies in its recovery before the second, and tells what the third one makes of it.
func (w *stepsWorld) crashTwice(op *stepsOp, first, step string) (left string) {
	w.t.Helper()
	w.cut(op, slices.Index(op.names(), first))

	call, args := w.follow(step, 2)
	log := filepath.Join(w.t.TempDir(), "trace")
	ctx, cancel := context.WithTimeout(context.Background(), replyTime)
	defer cancel()
	args = append([]string{"-f", "-y", "-s", "300", "-e", "signal=none", "-o", log, "-e", "inject=" + call + ":signal=KILL"}, args...)
	second := exec.CommandContext(ctx, w.strace, append(args, os.Args[0], "serve", "--config", w.config)...)
	second.Env = append(os.Environ(), asBerth+"=1")
	second.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	second.Cancel = func() error { // a berth that nothing has killed outlives its strace
		return syscall.Kill(-second.Process.Pid, syscall.SIGKILL)
	}
	said, err := second.CombinedOutput() // strace dies as its child did
	text, _ := os.ReadFile(log)
	if ctx.Err() != nil || !stepsCut(w.calls(string(text)), step) {
		w.t.Fatalf("recovery was not killed before %q: %v\n%s\n%s", step, err, said, text)
	}
	w.start()
	w.settled()
	left = w.look(op)
	w.told(op)
	return left
}

// fail does the operation with a call that fails, and tells the code of the reply and what
// is there then.
func (w *stepsWorld) fail(op *stepsOp, f stepsFailure) (code, left string) {
	w.t.Helper()
	at := slices.Index(op.names(), f.step)
	if at < 0 {
		at = len(op.steps) // it changes nothing, and is no step
	}
	phase := op.phase(at, f.step)
	w.prepare(op)
	var tr *stepsTracer
	attach := func() {
		call, args := w.follow(f.step, phase)
		tr = w.attach(append(args, "-e", fmt.Sprintf("inject=%s:error=%s", call, f.errno))...)
	}
	opened := func() {}
	if phase == 1 {
		attach()
	} else {
		opened = attach
	}
	reply := w.run(op, opened)
	if trace := tr.end(reply == ""); !strings.Contains(trace, "(INJECTED)") {
		w.t.Errorf("%s at %q: nothing was injected:\n%s", f.errno, f.step, trace)
	}
	w.settled()
	left = w.look(op)
	w.client.cmd("NOOP", "200 *")
	w.stored("STOR next", op.want, "226 *")
	w.client.cmd("DELE next", "250 *")
	w.told(op)
	return reply[:min(3, len(reply))], left
}
