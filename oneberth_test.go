package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newTwin is one more berth with ann's home, and with a state directory of its own.
func newTwin(t *testing.T, home, user string) *diskBox {
	t.Helper()
	dir := t.TempDir()
	b := &diskBox{t: t, box: &ftpBox{dir: dir, home: home}, home: home, file: filepath.Join(dir, "berth.toml")}
	b.box.writeTLS(t, filepath.Join(dir, "state"))
	b.box.user(t, "ann", user)
	more := daemonListen + quickDrain
	if strings.Contains(user, "filesystem") {
		more += "log.level = \"debug\"\n" // tells of each sweep
	}
	b.box.configure(t, more)
	return b
}

// anotherBerth is a newTwin that serves. Its ledger is in doubt, so that it sweeps the
// home as soon as it starts; where that is logged it has done so.
func anotherBerth(t *testing.T, home, user string) *diskBox {
	t.Helper()
	b := newTwin(t, home, user)
	if err := os.WriteFile(filepath.Join(b.box.dir, "state", ledgerName), []byte("?"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, line := range b.startTwin() {
		if line["msg"] == "home counted" { // it may be quicker than what serves
			return b
		}
	}
	if strings.Contains(user, "filesystem") {
		b.p.logged("home counted")
	}
	return b
}

// startTwin starts the berth, and returns what it logged until it served.
func (b *diskBox) startTwin() (log []map[string]any) {
	b.t.Helper()
	b.p = startBerth(b.t, nil, nil, "serve", "--config", b.file)
	timeout := time.After(replyTime)
	for {
		select {
		case line, ok := <-b.p.lines:
			if !ok {
				b.t.Fatalf("berth ended: %s", b.p.rest.String())
			}
			if log = append(log, line); line["msg"] != "serving" {
				continue
			}
			for _, f := range strings.Fields(line["listeners"].(string)) {
				kind, addr, _ := strings.Cut(f, "=")
				b.p.addrs[kind] = addr
			}
			return log
		case <-timeout:
			b.t.Fatal("berth does not serve")
		}
	}
}

// swept waits for a sweep of this berth that begins from now on: an upload that is cut
// off over a file brings one.
func (b *diskBox) swept(c *ftpClient) {
	b.t.Helper()
	for len(b.p.lines) > 0 {
		<-b.p.lines
	}
	c.stored("STOR old", []byte("old"))
	c.begin(b.home, "STOR old", testBytes(512<<10)).cut()
	c.want("426 *")
	b.p.logged("home counted")
}

// A begunUpload has sent a part of its content, and the server has written it.
type begunUpload struct{ net.Conn }

func (f *ftpClient) begin(home, command string, part []byte) begunUpload {
	f.t.Helper()
	f.cmd("EPSV", "229 *")
	d := f.open()
	f.cmd(command, "150 *")
	d.SetDeadline(time.Now().Add(replyTime))
	if _, err := d.Write(part); err != nil {
		f.fatalf("data: %v", err)
	}
	_, name, _ := strings.Cut(command, " ")
	for end := time.Now().Add(replyTime); ; runtime.Gosched() {
		stages, _ := filepath.Glob(filepath.Join(home, stagePrefix+"*."+name))
		for _, stage := range stages {
			if info, err := os.Stat(stage); err == nil && info.Size() == int64(len(part)) {
				return begunUpload{d}
			}
		}
		if time.Now().After(end) {
			f.fatalf("%s: its staging file does not get %d bytes", command, len(part))
		}
	}
}

// cut ends it with a reset.
func (d begunUpload) cut() {
	d.Conn.(*net.TCPConn).SetLinger(0)
	d.Close()
}

// reserved lists berth's own names in a directory, by what they begin with.
func reserved(t *testing.T, dir, prefix string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names
}

// TestTwoBerthsOneTree: two processes serve one home whose quota is the file system's.
func TestTwoBerthsOneTree(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	const user = "quota = \"filesystem\"\n"
	a := anotherBerth(t, home, user)
	one, two := testBytes(600<<10), testBytes(900<<10)
	half := one[:512<<10] // as much as goes to the disk at once, twice

	// What runs at one is not taken for what a crash has left by the other.
	ca, ca2 := a.p.dial("control").login(), a.p.dial("control").login()
	same, fresh := ca.begin(home, "STOR same", half), ca2.begin(home, "STOR fresh", half)
	b := anotherBerth(t, home, user)
	cb := b.p.dial("control").login()
	b.swept(cb) // and so the first sweep is over
	if got := reserved(t, home, stagePrefix); len(got) != 2 {
		t.Fatalf("two uploads run, and after a sweep of the other berth there are %q", got)
	}

	// The same name at both: the last to end has it, whole.
	cb.stored("STOR same", two)
	b.want("same", two)
	same.Write(one[len(half):])
	same.Close()
	ca.want("226 *")
	b.want("same", one)

	// One of them dies. What it was at is recovered by the other, and nothing else is.
	over := ca.begin(home, "STOR same", two[:512<<10])
	mine := cb.begin(home, "STOR mine", half)
	a.p.signal(syscall.SIGKILL)
	for range a.p.lines {
	}
	over.Close()
	fresh.Close()
	b.swept(b.p.dial("control").login())
	for range 2 {
		if line := b.p.logged("upload cut short by a crash"); line["result"] != "kept as a partial" {
			t.Errorf("logged %v", line)
		}
	}
	if got := reserved(t, home, stagePrefix); len(got) != 1 || !strings.HasSuffix(got[0], ".mine") {
		t.Errorf("one upload runs, and after the sweep there are %q", got)
	}
	mine.Write(one[len(half):])
	mine.Close()
	cb.want("226 *")
	b.want("mine", one)
	b.want("same", one)
	b.want("fresh", half)
	// And goes on there.
	cb.cmd("SIZE fresh", fmt.Sprintf("213 %d", len(half)))
	cb.cmd(fmt.Sprintf("REST %d", len(half)), "350 *")
	cb.stored("STOR fresh", one[len(half):])
	b.want("fresh", one)
	cb.cmd(fmt.Sprintf("REST %d", 512<<10), "350 *")
	cb.stored("STOR same", two[512<<10:])
	b.want("same", two)
	if got := reserved(t, home, stagePrefix); len(got) != 0 {
		t.Errorf("left are %q", got)
	}
}

// TestOneLedgerAHome: a home that one berth counts is refused by every other, until that
// has ended in whatever way; figures from before then are not believed any more.
func TestOneLedgerAHome(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	const user = "quota_bytes = \"1MiB\"\n"
	a := anotherBerth(t, home, user)
	a.login().stored("STOR a", testBytes(1000))
	refused := func(b *diskBox) {
		t.Helper()
		const told = "home is counted by another berth; its users are refused here"
		var line map[string]any
		for _, l := range b.startTwin() {
			if l["msg"] == told {
				line = l
			}
		}
		if line == nil {
			line = b.p.logged(told)
		}
		if line["home"] != home || !strings.Contains(fmt.Sprint(line["do"]), `quota = "filesystem"`) {
			t.Errorf("logged %v", line)
		}
		c := b.p.dial("control")
		c.want("220 *")
		c.cmd("USER ann", "331 *")
		c.cmd("PASS secret", "421 Another server has your home directory *")
		c.closed()
	}
	b := newTwin(t, home, user)
	b.box.configure(t, strings.Replace(daemonListen, "local = []", fmt.Sprintf("local = [%q]", filepath.Join(b.box.dir, "berth.sock")), 1)+quickDrain)
	refused(b)
	says := func(exit int, want string, args ...string) {
		t.Helper()
		if code, out, errs := cli(t, append(args, "--config", b.file)...); code != exit || !wildcard(want, squeezed(out+errs)) {
			t.Errorf("%v: %d, %q, want %d, %q", args, code, out+errs, exit, want)
		}
	}
	says(exitOK, "*ann - 1.00 MiB - - - - counted by another berth*", "user", "usage")
	says(exitFailed, "*Another berth counts this home*", "user", "scan", "ann")
	says(exitFailed, "*refused: the daemon says: Another berth counted his home *", "check", "--explain", "user=ann", "from=127.0.0.1")
	if _, all := examine(t, b.file); the(all, "ledger.elsewhere", "user ann: another berth counts the home "+home) == nil {
		t.Errorf("doctor found %+v", all)
	}
	a.login().stored("STOR b", testBytes(1000)) // the first is none the worse for it

	a.p.signal(syscall.SIGTERM)
	a.p.ended(exitOK)
	b.login().stored("STOR c", testBytes(1000))
	b.ledger()

	refused(a)
	b.p.signal(syscall.SIGKILL)
	for range b.p.lines {
	}
	a.login().stored("STOR d", testBytes(1000))
	a.ledger() // although its own last words were another number, and clean

	// Two on one state directory are two writers just the same.
	again := *a
	refused(&again)
	a.p.signal(syscall.SIGTERM)
	a.p.ended(exitOK)
	again.login()
	if _, err := os.Stat(filepath.Join(home, homeLockName)); err == nil {
		t.Error("a lock file in a home on a disk of this machine")
	}
}

// elsewhere has the tests' disk be one that other machines see.
func elsewhere(t *testing.T) {
	was := seenElsewhere
	seenElsewhere = func(int) bool { return true }
	t.Cleanup(func() { seenElsewhere = was })
}

// TestHomeLock: who has a home on a shared disk is in a file in it, which clients do not
// see; homes that need no lock have none, and one that nobody counts any more loses it.
func TestHomeLock(t *testing.T) {
	elsewhere(t)
	box := newLedgerBox(t)
	var log syncBuffer
	other := newJailSet(newLedger(t.TempDir(), slog.New(slog.NewTextHandler(&log, nil))))
	t.Cleanup(other.ledger.close)
	spec := jailSpec{user: "ann", home: filepath.Join(box.dir, "home"), quota: quota{bytes: testMB}}
	ann := box.enter("ann", spec.quota)
	box.enter("bob", spec.quota) // the same home, counted by the same berth
	for range 2 {
		if _, err := other.enter(spec); !errors.Is(err, errOtherBerth) {
			t.Fatalf("entered, %v", err)
		}
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, fmt.Sprintf("pid %d on", os.Getpid())) {
		t.Errorf("logged %q", got)
	}
	d, err := ann.openDir("/")
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	d.each(false, func(e *entry) error {
		if e.name != "share" {
			t.Errorf("listed: %s", e.name)
		}
		return nil
	})

	// Who does not count enters, and the log is told once that the other's figures suffer.
	free := spec
	free.uncounted = true
	j, err := other.enter(free)
	if err != nil {
		t.Fatal(err)
	}
	other.ledger.mixed(int(j.home.dir.Fd()), j.home.id, "ann", spec.home)
	if got := log.String(); !strings.Contains(got, "does not see what is stored here") {
		t.Errorf("logged %q", got)
	}

	// A reload has made the quota the file system's: the lock goes with the last session.
	l := box.js.ledger
	old := func() {
		for _, h := range l.held {
			h.used = time.Now().Add(-2 * homeLockLinger)
		}
	}
	old()
	l.letGo([]*user{{Name: "ann"}}, map[fileID]bool{})
	l.letGo(nil, box.js.counted())
	if len(l.held) != 1 {
		t.Fatal("let go of, while it is counted or a session has it")
	}
	l.letGo(nil, map[fileID]bool{})
	for end := time.Now().Add(replyTime); ; {
		if j, err = other.enter(spec); err == nil {
			other.leave(j)
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	if l.user("ann") != nil {
		t.Error("figures are kept that the other berth makes wrong")
	}

	// More homes than files may be open for are counted all the same.
	l.most = 1
	for i := range 3 {
		home := filepath.Join(box.dir, fmt.Sprint(i))
		if j, err := box.js.enter(jailSpec{user: fmt.Sprint(i), home: home}); err != nil {
			t.Error(err)
		} else {
			box.js.leave(j)
		}
		if _, err := os.Stat(filepath.Join(home, homeLockName)); (err == nil) != (i == 0) {
			t.Errorf("home %d: %v", i, err)
		}
	}
}

// TestHomeLockIsForeign: what a user's program has put in the lock's place is told, is
// not written to, and keeps nobody waiting or out.
func TestHomeLockIsForeign(t *testing.T) {
	elsewhere(t)
	box := newLedgerBox(t)
	for what, put := range map[string]func(path string) error{
		"pipe": func(path string) error { return unix.Mkfifo(path, 0o600) },
		"link": func(path string) error {
			file := filepath.Join(box.dir, "another's")
			return errors.Join(os.WriteFile(file, []byte("precious"), 0o600), os.Link(file, path))
		},
	} {
		home := filepath.Join(box.dir, what)
		if err := errors.Join(os.Mkdir(home, 0o700), put(filepath.Join(home, homeLockName))); err != nil {
			t.Fatal(err)
		}
		// He has locked it, too, so that who reads what it says of its holder waits.
		f, err := os.OpenFile(filepath.Join(home, homeLockName), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		var log syncBuffer
		js := newJailSet(newLedger(t.TempDir(), testLog(&log)))
		defer js.ledger.close()
		entered := make(chan error, 1)
		go func() {
			j, err := js.enter(jailSpec{user: what, home: home})
			if err == nil {
				js.leave(j)
			}
			entered <- err
		}()
		select {
		case err := <-entered:
			if got := log.String(); err != nil || !strings.Contains(got, "home cannot be locked") || !strings.Contains(got, homeLockName) {
				t.Errorf("%s: %v, logged %q", what, err, got)
			}
		case <-time.After(replyTime):
			t.Fatalf("%s: the login waits", what)
		}
	}
	if text, err := os.ReadFile(filepath.Join(box.dir, "another's")); string(text) != "precious" {
		t.Errorf("another's file has %q, %v", text, err)
	}
}

// TestStagingOfAnotherMachine: on a disk that other machines see, a lock may be one that
// only they know of. What they have there is left alone until it has lain still.
func TestStagingOfAnotherMachine(t *testing.T) {
	elsewhere(t)
	for _, tt := range []struct {
		mine  bool // of this machine
		size  int
		still time.Duration
		want  string // what becomes of it
	}{
		{mine: true, size: 9, still: restless - 10*time.Second, want: ""},
		{mine: true, size: 9, still: restless + time.Second, want: "kept as a partial"},
		{mine: true, still: restless + time.Second, want: "removed"},
		{size: 9, still: lockless - time.Minute, want: ""},
		{size: 9, still: lockless + time.Second, want: "removed: of another machine, or of this one before it restarted"},
		{still: lockless + time.Second, want: "removed"},
	} {
		js := newJailSet(nil)
		home := t.TempDir()
		j, err := js.enter(jailSpec{user: "ann", home: home})
		if err != nil {
			t.Fatal(err)
		}
		name := js.stageName(uploadStore, "f")
		if !tt.mine {
			name = stagePrefix + "00000000" + name[len(stagePrefix)+bootDigits:]
		}
		file := filepath.Join(home, name)
		if err := os.WriteFile(file, make([]byte, tt.size), 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-tt.still)
		if err := os.Chtimes(file, at, at); err != nil {
			t.Fatal(err)
		}
		s := &sweep{j: j, pace: func() error { return nil }}
		if err := s.run(); err != nil || len(s.orphans) != 1 {
			t.Fatal(s.orphans, err)
		}
		got, err := j.recoverStage(&s.orphans[0], time.Now().Add(time.Hour)) // by a clock that is ahead
		if got != tt.want || err != nil {
			t.Errorf("%+v: %q, %v", tt, got, err)
		}
		js.leave(j)
	}
}

// TestBerthsAtOneName: two berths that know nothing of one another do things to the same
// names at the same moment. Whatever one of them has acknowledged is there and whole,
// unless the other has put something whole in its place.
func TestBerthsAtOneName(t *testing.T) {
	home := t.TempDir()
	var boxes [2]*jail
	for i := range boxes {
		js := newJailSet(nil) // name locks and all of its own, as another process has them
		j, err := js.enter(jailSpec{user: "ann", home: home})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { js.leave(j) })
		boxes[i] = j
	}
	const whole, part = 2000, 700
	content := func(b byte) []byte { return bytes.Repeat([]byte{b}, whole) }
	store := func(j *jail, offset int64, data []byte) *upload {
		u, err := j.create("/f", uploadStore, offset, false)
		if err != nil {
			return nil // another one is at it
		}
		if _, err := u.Write(data); err != nil {
			u.discard()
			return nil
		}
		return u
	}
	f := filepath.Join(home, "f")
	for _, tt := range []struct {
		name   string
		before string                // what there is: "", "partial", "old"
		other  func(j *jail, at int) // against a whole upload
	}{
		{"an upload that is cut off", "", func(j *jail, _ int) {
			if u := store(j, -1, content('x')[:part]); u != nil {
				u.interrupt()
			}
		}},
		{"one more that is cut off", "partial", func(j *jail, _ int) {
			if u := store(j, -1, content('x')[:part]); u != nil {
				u.interrupt()
			}
		}},
		{"a restart that is cut off", "partial", func(j *jail, _ int) {
			if u := store(j, part, content('x')[:part]); u != nil {
				u.interrupt()
			}
		}},
		{"a restart that is called off", "partial", func(j *jail, _ int) {
			if u := store(j, part, content('x')[:part]); u != nil {
				u.discard()
			}
		}},
		{"an old file that goes", "old", func(j *jail, _ int) {
			s := &sweep{j: j, pace: func() error { return nil }, expireBefore: time.Now().Add(-time.Hour)}
			s.run()
			for i := range s.expired {
				j.removeFound(&s.expired[i], false)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lost := 0
			for range 200 {
				os.Remove(f)
				switch tt.before {
				case "partial":
					store(boxes[0], -1, content('p')[:part]).interrupt()
				case "old":
					os.WriteFile(f, []byte("old"), 0o600)
					os.Chtimes(f, time.Unix(1e9, 0), time.Unix(1e9, 0))
				}
				mine, other := boxes[0], boxes[1]
				u := store(mine, -1, content('a'))
				if u == nil {
					t.Fatal("not stored")
				}
				var wg sync.WaitGroup
				start := make(chan struct{})
				var err error
				wg.Go(func() { <-start; spin(rand.IntN(2000)); err = u.commit() })
				wg.Go(func() { <-start; tt.other(other, 0) })
				close(start)
				wg.Wait()
				if err != nil {
					t.Fatal(err)
				}
				if got, _ := os.ReadFile(f); !bytes.Equal(got, content('a')) {
					lost++
				}
				if names := reserved(t, home, stagePrefix); len(names) > 0 {
					t.Fatalf("left are %q", names)
				}
				os.Remove(filepath.Join(home, partialName("f")))
			}
			if lost > 0 {
				t.Errorf("what was acknowledged was gone %d times", lost)
			}
		})
	}
}

// spin passes a little time.
func spin(n int) {
	for range n {
		_ = time.Now()
	}
}

// holdsHome tells whether the housekeeper has come to lock a home.
func (b *ftpBox) holdsHome() bool {
	l := b.srv.jails.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range l.held {
		select {
		case <-h.tried:
			return true
		default:
		}
	}
	return false
}
