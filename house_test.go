// These tests let the housekeeper loose on homes that were made for it, most of
// them one sweep at a time in the test's own goroutine, and look at the disk, the
// ledger and the log afterwards. Ages are set with utimes, not waited for; only
// the loop itself runs in synthetic time.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// A houseBox is a ledgerBox with users and a housekeeper, whose loop runs only
// where the test starts it.
type houseBox struct {
	*ledgerBox
	cfg    *config
	log    *syncBuffer
	users  []*user // as write has written them
	house  *housekeeper
	cancel func() // nil: it has ended
}

func newHouseBox(t testing.TB, us ...*user) *houseBox {
	t.Helper()
	return newHouseBoxIn(t, "", us...)
}

// newHouseBoxIn is a houseBox in the directory of another one that has ended.
func newHouseBoxIn(t testing.TB, dir string, us ...*user) *houseBox {
	t.Helper()
	b := &houseBox{ledgerBox: newLedgerBoxIn(t, dir), cfg: &config{}, log: &syncBuffer{}, users: us}
	b.cfg.Transfer.PartialTTL = duration(24 * time.Hour)
	for _, u := range us {
		if u.Home == "" {
			u.Home = b.path("home")
		}
	}
	b.write()
	b.keep()
	t.Cleanup(func() { b.end(false) })
	return b
}

// write writes the files of the users, for the registry to read. share tells
// who may write to the box's share.
func (b *houseBox) write(share ...*user) {
	b.t.Helper()
	if err := os.MkdirAll(b.path("users.d"), 0o700); err != nil {
		b.t.Fatal(err)
	}
	for _, u := range b.users {
		text := fmt.Sprintf("home = %q\nquota = %q\nquota_bytes = \"%dB\"\nquota_files = %d\nwhen_full = %q\n", u.Home, u.Quota, u.QuotaBytes, u.QuotaFiles, cmp.Or(u.WhenFull, "reject"))
		if u.Expire > 0 {
			text += fmt.Sprintf("expire = %q\n", u.Expire.std())
		}
		if u.Disabled {
			text += "disabled = true\n"
		}
		if slices.Contains(share, u) {
			text += fmt.Sprintf("shares.share = { path = %q, write = true }\n", b.path("share"))
		}
		if err := os.WriteFile(b.path("users.d/"+u.Name+".toml"), []byte(text), 0o600); err != nil {
			b.t.Fatal(err)
		}
	}
}

// keep makes a housekeeper for the box's jails.
func (b *houseBox) keep() {
	b.t.Helper()
	log := slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	us, err := loadUsers(b.path("users.d"), b.path("state"), log)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel = cancel
	b.house = newHousekeeper(ctx, us, b.js, func() *config { return b.cfg }, log)
	b.house.started = time.Now()
}

// again is the next berth on the same state directory, with a log of its own.
func (b *houseBox) again() {
	b.t.Helper()
	b.js.ledger.close()
	b.log = &syncBuffer{}
	b.js = newJailSet(newLedger(b.path("state"), slog.New(slog.DiscardHandler)))
	b.keep()
}

// end ends the housekeeper as the server does, or, not in order, as kill -9.
func (b *houseBox) end(inOrder bool) {
	if b.cancel == nil {
		return
	}
	b.cancel()
	b.cancel = nil
	begun := true
	b.house.begun.Do(func() { begun = false })
	if begun {
		<-b.house.done
	}
	if inOrder {
		b.house.save(true)
	}
}

// jail opens the jail of one of the box's users, and counts it.
func (b *houseBox) jail(name string) *jail {
	b.t.Helper()
	us := b.house.users
	j, err := b.js.enter(us.jailSpec(us.get(name)))
	if err != nil {
		b.t.Fatal(err)
	}
	js := b.js
	b.t.Cleanup(func() { js.leave(j) })
	if j.balance != nil {
		if _, _, known := j.balance.usage(); !known {
			b.count(j)
		}
	}
	return j
}

// trySweep sweeps a user's home once, in this goroutine.
func (b *houseBox) trySweep(name string) (was, is ledgerEntry, err error) {
	return b.house.sweep(&sweepJob{u: b.house.users.get(name), done: make(chan struct{})})
}

func (b *houseBox) sweep(name string) (was, is ledgerEntry) {
	b.t.Helper()
	was, is, err := b.trySweep(name)
	if err != nil {
		b.t.Fatal(err)
	}
	return was, is
}

// next is how far away the next sweep of a user's home is.
func (b *houseBox) next(name string) time.Duration {
	b.t.Helper()
	b.house.mu.Lock()
	defer b.house.mu.Unlock()
	at, ok := b.house.due[name]
	if !ok {
		b.t.Fatalf("no sweep of %s is planned", name)
	}
	return time.Until(at)
}

// file makes a file of n bytes and that age.
func (b *houseBox) file(p string, n int, age time.Duration) {
	b.t.Helper()
	p = b.path(p)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(p, make([]byte, n), 0o600); err != nil {
		b.t.Fatal(err)
	}
	at := time.Now().Add(-age)
	if err := os.Chtimes(p, at, at); err != nil {
		b.t.Fatal(err)
	}
}

// partial marks a file as an interrupted upload under its own name.
func (b *houseBox) partial(p string) {
	b.t.Helper()
	if err := unix.Setxattr(b.path(p), partialXattr, []byte{'1'}, 0); err != nil {
		b.t.Skipf("user attributes: %v", err)
	}
}

// use marks a file as being read or replaced until the test's end.
func (b *houseBox) use(p string) {
	b.t.Helper()
	b.t.Cleanup(b.js.use(dirID(b.t, b.path(p))))
}

// names is what lies below a directory of the box, regular files only, partials
// kept aside of NAME in the list of as NAME~.
func (b *houseBox) names(dir string, of ...string) string {
	b.t.Helper()
	aside := map[string]string{}
	for _, name := range of {
		aside[partialName(name)] = name + "~"
	}
	var list []string
	walkNames(b.t, b.path(dir), func(p, name string) {
		if info, err := os.Lstat(p); err == nil && info.Mode().IsRegular() {
			rel, _ := filepath.Rel(b.path(dir), p)
			if a, ok := aside[name]; ok {
				rel = filepath.Join(filepath.Dir(rel), a)
			}
			list = append(list, rel)
		}
	})
	slices.Sort(list)
	return strings.Join(list, " ")
}

// logs counts the lines of the log that have all of these.
func (b *houseBox) logs(parts ...string) (n int) {
lines:
	for line := range strings.Lines(b.log.String()) {
		for _, part := range parts {
			if !strings.Contains(line, part) {
				continue lines
			}
		}
		n++
	}
	return n
}

// --- recovery ---

// TestParseStage: what stageName gives is what parseStage takes apart, and
// nothing else is a staging file.
func TestParseStage(t *testing.T) {
	js := newJailSet(nil)
	for _, base := range []string{"f", ".x", "a.b.c", "with space", "\xff\x01", strings.Repeat("n", 227), strings.Repeat("n", 228), longestName} {
		for _, kind := range []uploadKind{uploadStore, uploadAppend, uploadUnique, uploadResumed} {
			name := js.stageName(kind, base)
			if len(name) > maxName || !isReserved(name) {
				t.Errorf("%q is no name for a staging file", name)
			}
			boot, k, got, ok := parseStage(name)
			if want := map[bool]string{true: base}[len(name)-len(base) > 1 && strings.HasSuffix(name, base)]; !ok || boot != js.boot || k != kind || got != want {
				t.Errorf("%q: %q, %c, %q, %t; want %q, %c, %q", name, boot, k, got, ok, js.boot, kind, want)
			}
		}
	}
	for _, name := range []string{"", "f", ".berth-up", ".berth-up-", ".berth-up-0123456789abcdef", ".berth-up-0123456789abcdefs.", ".berth-up-0123456789abcdefsf",
		".berth-up-0123456789abcdefs.a/b", ".berth-part-0123456789abcdef", ".BERTH-UP-0123456789abcdefs.f"} {
		if boot, kind, base, ok := parseStage(name); ok {
			t.Errorf("%q is taken for a staging file: %q, %c, %q", name, boot, kind, base)
		}
	}
}

// TestRecover: what becomes of the staging files that a crash has left, by their
// names alone.
func TestRecover(t *testing.T) {
	here := newJailSet(nil).boot
	there := "ffffffff"
	if here == there {
		there = "00000000"
	}
	const random = "01234567"
	long := strings.Repeat("n", maxName)
	tests := []struct {
		name     string
		stage    string // in d
		size     int
		age      time.Duration
		disk     []string // beside it, in d
		locked   bool
		uncounts bool   // quota = "filesystem"
		want     string // in d
		partial  bool   // d/f is marked
		log      string
	}{
		{name: "STOR", stage: here + random + "s.f", size: 5, want: "f", partial: true, log: "kept as a partial"},
		{name: "STOU", stage: here + random + "u.f", size: 5, want: "f", partial: true, log: "kept as a partial"},
		{name: "REST", stage: here + random + "r.f", size: 5, want: "f", partial: true, log: "kept as a partial"},
		{name: "where the kernel counts", stage: here + random + "s.f", size: 5, uncounts: true, want: "f", partial: true, log: "kept as a partial"},
		{name: "STOR over a file", stage: here + random + "s.f", size: 5, disk: []string{"f = old"}, want: "f f~", log: "kept as a partial"},
		{name: "STOR over a file with a partial", stage: here + random + "s.f", size: 5, disk: []string{"f = old", partialName("f") + " = o"}, want: "f f~", log: "kept as a partial"},
		{name: "REST over a file", stage: here + random + "r.f", size: 5, disk: []string{"f = old"}, want: "f f~", log: "kept as a partial"},
		{name: "STOU, and the name was taken", stage: here + random + "u.f", size: 5, disk: []string{"f = other"}, want: "f f~", log: "kept as a partial"},
		{name: "APPE", stage: here + random + string(uploadCopied) + ".f", size: 5, disk: []string{"f = old"}, want: "f", log: "result=removed"},
		{name: "no byte", stage: here + random + "s.f", want: "", age: time.Hour, log: "result=removed"},
		{name: "no byte, this moment", stage: here + random + "s.f", age: -time.Second, want: ".berth-up-" + here + random + "s.f"},
		{name: "another boot", stage: there + random + "s.f", size: 5, want: "", log: "the machine has restarted"},
		{name: "another boot, over a file", stage: there + random + "r.f", size: 5, disk: []string{"f = old"}, want: "f", log: "the machine has restarted"},
		{name: "too long a name", stage: here + random + "s", size: 5, want: "", log: "result=removed"},
		{name: "the longest name that fits", stage: here + random + "s." + long[:227], size: 5, want: long[:227], log: "kept as a partial"},
		{name: "running", stage: here + random + "s.f", size: 5, locked: true, want: ".berth-up-" + here + random + "s.f"},
		{name: "running, of another boot's name", stage: there + random + "s.f", size: 5, locked: true, want: ".berth-up-" + there + random + "s.f"},
		{name: "not of berth's making", stage: "what", size: 5, want: ".berth-up-what", log: "not recovered"},
		{name: "unknown kind", stage: here + random + "x.f", size: 5, want: "f", partial: true, log: "kept as a partial"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u := &user{Name: "ann"}
			if tt.uncounts {
				u.Quota = "filesystem"
			}
			b := newHouseBox(t, u)
			needXattr(t, b.dir)
			makeTestFiles(t, b.path("home"), []string{"d/"})
			makeTestFiles(t, b.path("home/d"), tt.disk)
			stage := "home/d/" + stagePrefix + tt.stage
			b.file(stage, tt.size, tt.age)
			if tt.locked {
				f, err := os.Open(b.path(stage))
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
					t.Fatal(err)
				}
			}
			before := diskState(t, b.path("home/d"))
			b.sweep("ann")
			if got := b.names("home/d", "f"); got != tt.want {
				t.Errorf("left: %q; want %q", got, tt.want)
			}
			if f, ok := before["f"]; ok && diskState(t, b.path("home/d"))["f"] != f {
				t.Errorf("the old file was %q, is %q", f, diskState(t, b.path("home/d"))["f"])
			}
			if tt.partial != (&uploadBox{home: b.path("home/d")}).isPartial("/f") {
				t.Errorf("marked as a partial: %t", !tt.partial)
			}
			if n := b.logs("level=WARN"); tt.log == "" && n > 0 || tt.log != "" && b.logs(tt.log) != 1 {
				t.Errorf("logged %q; want %q once", b.log.String(), tt.log)
			}
			if !tt.uncounts && !tt.locked && tt.age >= 0 && tt.name != "not of berth's making" {
				j := b.jail("ann")
				b.agrees(j)
				b.sweep("ann")
				b.agrees(j)
			}
			// What is still there is looked at again before a day has passed.
			if strings.Contains(tt.want, stagePrefix) && b.next("ann") > sweepMax {
				t.Errorf("the next look is in %v", b.next("ann"))
			}
		})
	}
}

// TestRecoverInShare: an orphan in a share is its owner's sweep's to end.
func TestRecoverInShare(t *testing.T) {
	ann, bob := &user{Name: "ann", QuotaBytes: 100}, &user{Name: "bob", QuotaBytes: 100}
	b := newHouseBox(t, ann, bob)
	needXattr(t, b.dir)
	makeTestFiles(t, b.dir, []string{"bob/"})
	bob.Home = b.path("bob")
	b.write(ann, bob)
	stage := "share/" + stagePrefix + b.js.boot + "01234567s.f"
	b.file(stage, 50, 0)
	if err := unix.Setxattr(b.path(stage), shareOwnerXattr, []byte("bob"), 0); err != nil {
		t.Fatal(err)
	}
	jbob := b.jail("bob")
	b.sweep("ann")
	if got := b.names("share"); got != filepath.Base(stage) {
		t.Errorf("after ann's sweep: %q", got)
	}
	b.sweep("bob")
	if got := b.names("share"); got != "f" {
		t.Errorf("after bob's sweep: %q", got)
	}
	b.agrees(jbob)
	if got := b.used(jbob); got != (quota{50, 1}) {
		t.Errorf("bob is charged %+v", got)
	}
}

// TestRecoverWithinQuota: a crash does not leave more than the quota allows.
func TestRecoverWithinQuota(t *testing.T) {
	for _, tt := range []struct {
		name         string
		bytes, files int64
		old, staged  int
		want         string
		used         quota
	}{
		{"both fit", 100, 2, 50, 50, "f f~", quota{100, 2}},
		{"cut to what fits", 100, 0, 60, 50, "f f~", quota{100, 2}},
		{"nothing fits", 60, 0, 60, 50, "f", quota{60, 1}},
		{"no place for a file more", 0, 1, 60, 50, "f", quota{60, 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newHouseBox(t, &user{Name: "ann", QuotaBytes: byteSize(tt.bytes), QuotaFiles: tt.files})
			needXattr(t, b.dir)
			b.file("home/f", tt.old, 0)
			b.file("home/"+stagePrefix+b.js.boot+"01234567s.f", tt.staged, 0)
			b.sweep("ann")
			j := b.jail("ann")
			if got := b.names("home", "f"); got != tt.want || b.used(j) != tt.used {
				t.Errorf("left %q, charged %+v; want %q, %+v", got, b.used(j), tt.want, tt.used)
			}
			b.agrees(j)
		})
	}
}

// --- what is over ---

// TestPartialTTL: partials kept aside go when their time is over, complete files
// and partials under their own names do not.
func TestPartialTTL(t *testing.T) {
	b := newHouseBox(t, &user{Name: "ann"})
	for _, age := range []time.Duration{23 * time.Hour, 25 * time.Hour} {
		name := fmt.Sprintf("%d", int(age.Hours()))
		b.file("home/d/"+partialName(name), 10, age)
		b.file("home/d/"+name, 1, age)
	}
	b.file("home/own", 1, 48*time.Hour)
	b.partial("home/own")
	b.sweep("ann")
	if got := b.names("home", "23", "25"); got != "d/23 d/23~ d/25 own" {
		t.Errorf("left %q", got)
	}
	if b.logs("partial removed", "user=ann", "bytes=10", "older than partial_ttl") != 1 {
		t.Errorf("logged %q", b.log.String())
	}
	if n := b.next("ann"); n > time.Hour+time.Second || n < sweepMin-time.Millisecond {
		t.Errorf("the next sweep is in %v; the other one is over in an hour", n)
	}
	b.agrees(b.jail("ann"))

	b.cfg.Transfer.PartialTTL = 0 // they are kept for ever
	b.file("home/d/"+partialName("25"), 10, 10000*time.Hour)
	b.sweep("ann")
	if got := b.names("home", "23", "25"); got != "d/23 d/23~ d/25 d/25~ own" {
		t.Errorf("without a time left %q", got)
	}
	if n := b.next("ann"); n < sweepMax {
		t.Errorf("without a time the next sweep is in %v", n)
	}
}

// TestExpire: files go by their age, but none that is being read or replaced and
// none in a share.
func TestExpire(t *testing.T) {
	ann := &user{Name: "ann", Expire: duration(time.Hour)}
	b := newHouseBox(t, ann)
	b.write(ann)
	b.file("home/old", 1, 61*time.Minute)
	b.file("home/d/deep", 2, 1000*time.Hour)
	b.file("home/young", 4, 59*time.Minute)
	b.file("home/future", 8, -1000*time.Hour)
	b.file("home/read", 16, 2*time.Hour)
	b.file("home/partial", 32, 2*time.Hour)
	b.file("home/1970", 64, time.Since(time.Unix(1, 0))) // a camera without a clock: its ctime is of now
	b.file("share/old", 128, 2*time.Hour)
	b.partial("home/partial")
	b.use("home/read")
	b.sweep("ann")
	if got := b.names("home"); got != "future read young" {
		t.Errorf("left %q", got)
	}
	if got := b.names("share"); got != "old" {
		t.Errorf("left in the share: %q", got)
	}
	if _, err := os.Stat(b.path("home/d")); err != nil {
		t.Error("a directory is no file:", err)
	}
	for _, name := range []string{"/old", "/d/deep", "/partial", "/1970"} {
		if b.logs("file removed", "user=ann", "path="+name+" ", "result=expired") != 1 {
			t.Errorf("%s: logged %q", name, b.log.String())
		}
	}
	b.agrees(b.jail("ann"))
	if n := b.next("ann"); n < 10*time.Second || n > 2*time.Minute {
		t.Errorf("the next sweep is in %v; one is over in a minute, and one is being read", n)
	}
}

// TestExpireWhileReplaced: a file that is old when its replacement is on its way
// stays until that is there.
func TestExpireWhileReplaced(t *testing.T) {
	b := newHouseBox(t, &user{Name: "ann", Expire: duration(time.Hour)})
	b.file("home/f", 10, 2*time.Hour)
	j := b.jail("ann")
	u := b.begin(j, "/f", uploadStore, -1, 5)
	b.sweep("ann")
	if e, err := j.stat("/f"); err != nil || e.size != 10 {
		t.Errorf("meanwhile %+v, %v", e, err)
	}
	if err := u.commit(); err != nil {
		t.Fatal(err)
	}
	b.sweep("ann")
	if e, err := j.stat("/f"); err != nil || e.size != 5 {
		t.Errorf("afterwards %+v, %v", e, err)
	}
	b.agrees(j)
}

// TestRemoveFound: what was found is removed only if it is still what it was.
func TestRemoveFound(t *testing.T) {
	for _, tt := range []struct {
		name     string
		change   func(b *houseBox)
		complete bool
		gone     bool
	}{
		{"as it was", func(*houseBox) {}, false, true},
		{"as it was, and complete", func(*houseBox) {}, true, true},
		{"touched", func(b *houseBox) { b.file("home/f", 10, time.Minute) }, false, false},
		{"grown", func(b *houseBox) { b.file("home/f", 11, time.Hour) }, false, false},
		{"replaced", func(b *houseBox) { b.file("home/g", 10, time.Hour); os.Rename(b.path("home/g"), b.path("home/f")) }, false, false},
		{"gone", func(b *houseBox) { os.Remove(b.path("home/f")) }, false, true},
		{"being read", func(b *houseBox) { b.use("home/f") }, false, false},
		{"a partial", func(b *houseBox) { b.partial("home/f") }, false, true},
		{"a partial, where complete ones are wanted", func(b *houseBox) { b.partial("home/f") }, true, false},
		{"its directory is a link now", func(b *houseBox) {
			os.Rename(b.path("home"), b.path("other"))
			os.Symlink("other", b.path("home"))
		}, false, true}, // the tree is open: it is the same directory
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newHouseBox(t, &user{Name: "ann", Expire: duration(time.Minute)})
			b.file("home/f", 10, time.Hour)
			j := b.jail("ann")
			s := &sweep{j: j, expireBefore: time.Now(), pace: func() error { return nil }}
			if err := s.run(); err != nil || len(s.expired) != 1 {
				t.Fatalf("found %+v, %v", s.expired, err)
			}
			tt.change(b)
			err := j.removeFound(&s.expired[0], tt.complete)
			_, serr := os.Stat(b.path("home/f"))
			if gone := errors.Is(serr, os.ErrNotExist); gone != tt.gone || !gone && err == nil {
				t.Errorf("gone: %t, %v", gone, err)
			}
		})
	}
}

// TestUndated: a file of a time when the machine's clock was not set is not as
// old as it seems.
func TestUndated(t *testing.T) {
	b := newHouseBox(t, &user{Name: "ann", Expire: duration(time.Hour)})
	b.file("home/f", 1, 0)
	j := b.jail("ann")
	s := &sweep{j: j, expireBefore: time.Now().Add(-time.Hour)}
	note := func(mtime, ctime int64) (expired, undated int) {
		s.expired, s.undated = nil, nil
		st := unix.Stat_t{Mode: unix.S_IFREG, Mtim: unix.NsecToTimespec(mtime * 1e9), Ctim: unix.NsecToTimespec(ctime * 1e9)}
		s.note(j.home, int(j.home.dir.Fd()), ".", "f", &st, false, false)
		return len(s.expired), len(s.undated)
	}
	now := time.Now().Unix()
	for _, tt := range []struct {
		mtime, ctime     int64
		expired, undated int
	}{
		{100, 100, 0, 1},
		{clockUnset - 1, clockUnset - 1, 0, 1},
		{100, now, 1, 0}, // a client set it, with MFMT
		{now, now, 0, 0},
		{now - 7200, now, 1, 0},
		{now + 7200, 100, 0, 0},
	} {
		if e, u := note(tt.mtime, tt.ctime); e != tt.expired || u != tt.undated {
			t.Errorf("modified %d, changed %d: expired %d, undated %d", tt.mtime, tt.ctime, e, u)
		}
	}
}

// TestClockJumps: a clock that was set is noticed, and no age is believed for an
// hour.
func TestClockJumps(t *testing.T) {
	for _, tt := range []struct {
		name string
		jump time.Duration
		set  bool
	}{
		{"runs", 0, false},
		{"is slewed", clockSlack / 2, false},
		{"to the front", 50 * 365 * 24 * time.Hour, true},
		{"back", -2 * time.Hour, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newHouseBox(t, &user{Name: "ann", Expire: duration(time.Hour)})
			b.file("home/old", 1, 2*time.Hour)
			now := time.Now()
			b.house.lastTick, b.house.lastWall = now.Add(-time.Second), now.Add(-time.Second-tt.jump).Round(0)
			b.house.watchClock(now)
			if got := b.logs("the clock was set", "level=WARN") == 1; got != tt.set {
				t.Errorf("noticed: %t; log %q", got, b.log.String())
			}
			b.sweep("ann")
			if got := b.names("home"); (got == "old") != tt.set {
				t.Errorf("left %q", got)
			}
			if tt.set && b.next("ann") < clockPause-time.Minute {
				t.Errorf("the next sweep is in %v, and can remove nothing", b.next("ann"))
			}
			b.house.quietUntil = time.Time{}
			b.sweep("ann")
			if got := b.names("home"); got != "" {
				t.Errorf("after the pause left %q", got)
			}
		})
	}
}

// --- bounds ---

// TestSweepBounds: what is found beyond the length of its lists is left to the
// next turns, which come soon.
func TestSweepBounds(t *testing.T) {
	b := newHouseBox(t, &user{Name: "ann", Expire: duration(time.Hour)})
	const n = 2*sweepList + 1
	for i := range n {
		b.file(fmt.Sprintf("home/%d", i), 1, 2*time.Hour)
	}
	left := n
	for turn := range 3 {
		b.sweep("ann")
		left = max(left-sweepList, 0)
		if q := diskUse(t, b.path("home"), ""); q.files != int64(left) {
			t.Errorf("after turn %d there are %d; want %d", turn+1, q.files, left)
		}
		if left > 0 && b.next("ann") > sweepMin {
			t.Errorf("the next turn is in %v", b.next("ann"))
		}
	}
	b.agrees(b.jail("ann"))
}

// TestSweepYields: a long count lets requests in, and ends with the server.
func TestSweepYields(t *testing.T) {
	b := newHouseBox(t, &user{Name: "ann"}, &user{Name: "bob"})
	makeTestFiles(t, b.dir, []string{"bob/"})
	b.users[1].Home = b.path("bob")
	b.write()
	for i := range 3 * sweepBatch {
		b.file(fmt.Sprintf("home/%d", i), 0, 0)
	}
	b.house.start()
	for _, u := range b.users {
		if _, is, err := b.house.scan(u); err != nil || !is.Exact {
			t.Errorf("%s: %+v, %v", u.Name, is, err)
		}
	}
	s := &sweep{j: b.jail("ann"), pace: func() error { return context.Canceled }}
	if _, _, _, err := s.count(); !errors.Is(err, context.Canceled) {
		t.Errorf("a count that is to end: %v", err)
	}
	b.cancel()
	if _, _, err := b.house.scan(b.users[0]); !errors.Is(err, context.Canceled) {
		t.Errorf("a scan after the end: %v", err)
	}
}

// TestDirectoryGoesDuringCount: names that go while they are counted do not end
// the count.
func TestDirectoryGoesDuringCount(t *testing.T) {
	b := newHouseBox(t, &user{Name: "ann"})
	j := b.jail("ann")
	for i := range 3 * sweepBatch {
		b.file(fmt.Sprintf("home/d/%d", i), 1, 0)
	}
	b.file("home/z", 1, 0)
	s := &sweep{j: j, pace: func() error { return os.RemoveAll(b.path("home/d")) }}
	if _, _, _, err := s.count(); err != nil {
		t.Error(err)
	}
	b.sweep("ann")
	b.agrees(j)
}

// TestRenameDuringCount: a name that moves from what is still to be counted to
// what was counted is not lost to the ledger.
func TestRenameDuringCount(t *testing.T) {
	for _, tt := range []struct{ name, from, to string }{
		{"a file", "/d/e/big", "/big"},
		{"a directory", "/d/e", "/e"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newHouseBox(t, &user{Name: "ann", QuotaBytes: 100})
			for i := range sweepBatch + 10 {
				b.file(fmt.Sprintf("home/d/%d", i), 0, 0)
			}
			b.file("home/d/e/big", 60, 0)
			j := b.jail("ann")
			s := &sweep{j: j, pace: func() error { return j.rename(tt.from, tt.to, true) }}
			if _, is, quiet, err := s.count(); err != nil || quiet {
				t.Errorf("counted %+v, quiet: %t, %v", is, quiet, err)
			}
			b.agrees(j)
			b.count(j)
			b.agrees(j)
		})
	}
}

// TestUploadDuringCount: a count that meets uploads in every state takes no part
// of them for more, or less, than they will have been.
func TestUploadDuringCount(t *testing.T) {
	b := newHouseBox(t, &user{Name: "ann", QuotaBytes: 10 * testMB})
	j := b.jail("ann")
	b.put(j, "/f", 6*testMB)
	b.begin(j, "/part", uploadStore, -1, testMB).interrupt()
	over := b.begin(j, "/f", uploadStore, -1, 6*testMB)
	resumed := b.begin(j, "/part", uploadStore, testMB, testMB)
	fresh := b.begin(j, "/new", uploadStore, -1, testMB)
	if _, is := b.count(j); is.Bytes != 9*testMB || is.Files != 3 {
		t.Errorf("counted %+v", is)
	}
	for _, u := range []*upload{over, resumed, fresh} {
		if err := u.commit(); err != nil {
			t.Error(err)
		}
	}
	b.agrees(j)
}

// TestSweepSharedHome: users of one home have one balance. The sweep of one takes
// nothing out of it that another stored in a share of his own, and what is
// written of it is there whoever's quota the kernel keeps.
func TestSweepSharedHome(t *testing.T) {
	b := newHouseBox(t, &user{Name: "ann"}, &user{Name: "bob"})
	needXattr(t, b.dir)
	b.write(b.users[0])
	ann := b.jail("ann")
	b.put(ann, "/share/f", 6*testMB)
	b.jail("bob")
	b.sweep("bob")
	if got := b.used(ann); got != (quota{6 * testMB, 1}) {
		t.Errorf("after bob's sweep %+v are charged", got)
	}
	b.agrees(ann)
	for _, kernel := range b.users {
		b.users[0].Quota, b.users[1].Quota = "", ""
		kernel.Quota = "filesystem"
		b.write(b.users[0])
		b.house.save(true)
		if entries, _, err := readLedger(b.path("state/" + ledgerName)); len(entries) != 1 || err != nil {
			t.Errorf("with the kernel's quota for %s %v is kept, %v", kernel.Name, entries, err)
		}
	}
}

// TestFirstCountOnce: the sweep that makes a balance known is not asked for again
// by its own entering of the home.
func TestFirstCountOnce(t *testing.T) {
	b := newHouseBox(t, &user{Name: "ann"})
	b.sweep("ann")
	if n := b.next("ann"); n < sweepMax {
		t.Errorf("the next sweep is in %v", n)
	}
}

// --- the loop ---

// TestHouseLoop: first what is in doubt, at once and without a pause between
// homes; then once a day.
func TestHouseLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var us []*user
		for i := range 5 {
			us = append(us, &user{Name: fmt.Sprintf("u%d", i)})
		}
		b := newHouseBox(t, us...)
		for _, u := range us {
			u.Home = b.path("homes/" + u.Name)
			b.file("homes/"+u.Name+"/f", 5, 0)
		}
		// counts tells how many were made since the last start.
		counts := func() int {
			synctest.Wait()
			return b.logs("home counted")
		}
		b.write()
		start := func() {
			b.again()
			b.house.start()
			synctest.Wait()
		}
		known := func(when string) {
			t.Helper()
			for _, u := range us {
				if bytes, files, known := b.js.ledger.user(u.Name).usage(); bytes != 5 || files != 1 || !known {
					t.Errorf("%s %s has %d bytes in %d files, known: %t", when, u.Name, bytes, files, known)
				}
			}
		}
		start()
		if n := counts(); n != len(us) {
			t.Errorf("%d counts at the first start", n)
		}
		known("first")
		time.Sleep(countEvery + time.Minute)
		if n := counts(); n < 2*len(us) || n > 3*len(us) {
			t.Errorf("%d counts in the first day", n)
		}
		b.end(true)

		start()
		time.Sleep(time.Minute)
		if n := counts(); n != 0 {
			t.Errorf("%d counts after a clean stop", n)
		}
		known("after a clean stop")
		b.end(false)

		start()
		if n := counts(); n != len(us) {
			t.Errorf("%d counts after an unclean stop", n)
		}
		known("after an unclean stop")
	})
}

// TestHouseExpiresInTime: a file goes within seconds of its time.
func TestHouseExpiresInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newHouseBox(t, &user{Name: "ann", Expire: duration(time.Hour)})
		b.file("home/f", 1, 30*time.Minute)
		b.house.start()
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if got := b.names("home"); got != "f" {
			t.Errorf("left %q when its time is just over", got)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if got := b.names("home"); got != "" {
			t.Errorf("left %q three seconds later", got)
		}
	})
}

// TestHouseDisabled: the home of a disabled user is let go of, so that its disk can be
// unmounted, and left alone; what is known of it is shown until he is enabled again,
// and counted anew then.
func TestHouseDisabled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ann := &user{Name: "ann", QuotaBytes: 100, Expire: duration(time.Hour)}
		b := newHouseBox(t, ann)
		b.file("home/f", 60, 0)
		held := func() int {
			synctest.Wait()
			b.js.ledger.mu.Lock()
			defer b.js.ledger.mu.Unlock()
			return len(b.js.ledger.held)
		}
		disable := func(yes bool) {
			ann.Disabled = yes
			b.write()
			b.house.users.reload(nil)
			b.house.reloaded()
		}
		b.house.start()
		if n := held(); n != 1 {
			t.Fatalf("%d homes are locked", n)
		}
		disable(true)
		time.Sleep(5 * time.Second)
		if n := held(); n != 0 {
			t.Errorf("five seconds after he was disabled %d homes are locked", n)
		}
		if bytes, _, known := b.js.ledger.user("ann").usage(); bytes != 60 || !known {
			t.Errorf("%d bytes are shown, known: %t", bytes, known)
		}
		b.file("home/g", 30, 0)
		time.Sleep(countEvery + time.Hour)
		if n, got := held(), b.names("home"); n != 0 || got != "f g" {
			t.Errorf("a day later %d homes are locked, and there is %q", n, got)
		}
		b.end(true)
		b.again()
		b.house.start()
		time.Sleep(time.Hour)
		if n := held(); n != 0 {
			t.Errorf("after a restart %d homes are locked", n)
		}
		ann.Expire = 0
		disable(false)
		time.Sleep(ledgerEvery + houseTick)
		if n := held(); n != 1 {
			t.Errorf("enabled again, %d homes are locked", n)
		}
		if bytes, _, known := b.js.ledger.user("ann").usage(); bytes != 90 || !known {
			t.Errorf("enabled again, there are %d bytes, known: %t", bytes, known)
		}
	})
}

// TestHouseMissingHome: a home that is not there is not made by a sweep, and comes
// back with its figures.
func TestHouseMissingHome(t *testing.T) {
	b := newHouseBox(t, &user{Name: "ann", QuotaBytes: 100})
	b.file("home/f", 60, 0)
	b.sweep("ann")
	if err := os.Rename(b.path("home"), b.path("away")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.trySweep("ann"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("sweep: %v", err)
	}
	if _, err := os.Stat(b.path("home")); err == nil {
		t.Error("the sweep made a home")
	}
	b.end(true)
	b.js.ledger.close()
	if err := os.Rename(b.path("away"), b.path("home")); err != nil {
		t.Fatal(err)
	}
	next := newHouseBoxIn(t, b.dir, b.users...)
	next.house.planAll()
	if got := next.js.ledger.user("ann"); got == nil || !got.exact || got.bytes != 60 {
		t.Errorf("back again: %+v", got)
	}
}

// TestHouseHomesThatHang: homes whose file server is gone do not keep those behind them
// from being counted, cost a bounded number of threads, and come back by themselves.
func TestHouseHomesThatHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead := t.TempDir()
		var all []*user
		for i := range 3 * looksHungDir {
			all = append(all, &user{Name: fmt.Sprintf("a%02d", i), QuotaBytes: 100, Home: filepath.Join(dead, itoa(i))})
		}
		for i := range 2 * looksAtOnce {
			all = append(all, &user{Name: fmt.Sprintf("b%02d", i), QuotaBytes: 100})
		}
		b := newHouseBox(t, all...)
		back := make(chan struct{})
		var looks atomic.Int64
		b.house.openHome = func(home string) (int, error) {
			if strings.HasPrefix(home, dead) {
				looks.Add(1)
				<-back
				return -1, unix.ENOENT
			}
			return openHome(home)
		}
		for range 3 { // one a minute
			b.house.planAll()
			for _, u := range all {
				if is, dies := b.js.ledger.user(u.Name) != nil, strings.HasPrefix(u.Home, dead); is == dies {
					t.Errorf("%s: ledger %v, and his home hangs %v", u.Name, is, dies)
				}
			}
			if n := looks.Load(); n != looksHungDir {
				t.Errorf("%d looks hang, want %d", n, looksHungDir)
			}
		}
		b.house.watchSweeps(time.Now().Add(2 * sweepStuck))
		b.house.watchSweeps(time.Now().Add(3 * sweepStuck))
		if n := strings.Count(b.log.String(), "home does not answer"); n != looksHungDir {
			t.Errorf("%d lines, want %d:\n%s", n, looksHungDir, b.log.String())
		}
		close(back)
		synctest.Wait()
		b.house.planAll()
		for _, u := range all {
			if strings.HasPrefix(u.Home, dead) && !b.house.homeless(u) {
				t.Errorf("%s is still unknown", u.Name)
			}
		}
		if len(b.house.looks) != 0 {
			t.Errorf("%d looks are left", len(b.house.looks))
		}
	})
}

// --- rotation ---

// TestRotate: a full home loses its oldest complete files, as many as it takes
// and no more, and none if that is not enough.
func TestRotate(t *testing.T) {
	type aged struct {
		p     string
		bytes int
		hours int
		kind  string // "", "read" or "partial"
	}
	tests := []struct {
		name         string
		bytes, files int64
		have         []aged
		want         quota // room for
		ok           bool
		left         string
	}{
		{name: "nothing needed", bytes: 100, have: []aged{{"a", 40, 3, ""}, {"b", 40, 2, ""}}, want: quota{20, 1}, ok: true, left: "a b"},
		{name: "the oldest", bytes: 100, have: []aged{{"a", 40, 1, ""}, {"b", 40, 3, ""}, {"c", 20, 2, ""}}, want: quota{30, 1}, ok: true, left: "a c"},
		{name: "as many as it takes", bytes: 100, have: []aged{{"a", 40, 4, ""}, {"b", 30, 3, ""}, {"c", 20, 2, ""}, {"d", 10, 1, ""}}, want: quota{65, 1}, ok: true, left: "c d"},
		{name: "all", bytes: 100, have: []aged{{"a", 60, 2, ""}, {"d/b", 40, 1, ""}}, want: quota{100, 1}, ok: true, left: ""},
		{name: "it can never fit", bytes: 100, have: []aged{{"a", 60, 2, ""}}, want: quota{101, 1}, left: "a"},
		{name: "not one being read", bytes: 100, have: []aged{{"a", 40, 3, "read"}, {"b", 40, 2, ""}, {"c", 20, 1, ""}}, want: quota{30, 1}, ok: true, left: "a c"},
		{name: "not a partial", bytes: 100, have: []aged{{"a", 40, 3, "partial"}, {"b", 40, 2, ""}, {"c", 20, 1, ""}}, want: quota{30, 1}, ok: true, left: "a c"},
		{name: "not a partial aside", bytes: 100, have: []aged{{partialName("b"), 40, 3, ""}, {"b", 60, 2, ""}}, want: quota{30, 1}, ok: true, left: ""},
		{name: "not enough, with one being read", bytes: 100, have: []aged{{"a", 60, 3, "read"}, {"b", 40, 2, ""}}, want: quota{50, 1}, left: "a b"},
		{name: "not enough, with a partial", bytes: 100, have: []aged{{"a", 60, 3, "partial"}, {"b", 40, 2, ""}}, want: quota{50, 1}, left: "a b"},
		{name: "files", files: 3, have: []aged{{"a", 1, 3, ""}, {"b", 1, 2, ""}, {"c", 1, 1, ""}}, want: quota{5, 1}, ok: true, left: "b c"},
		{name: "files, and directories stay", files: 3, have: []aged{{"d/a", 1, 3, ""}, {"b", 1, 2, ""}}, want: quota{5, 1}, ok: true, left: "b"},
		{name: "both", bytes: 100, files: 3, have: []aged{{"a", 1, 3, ""}, {"b", 1, 2, ""}, {"c", 90, 1, ""}}, want: quota{50, 1}, ok: true, left: ""},
		{name: "nothing there", bytes: 100, want: quota{101, 1}},
		{name: "of a time without a clock", bytes: 100, have: []aged{{"a", 60, 24 * 365 * 50, ""}, {"b", 40, 1, ""}}, want: quota{50, 1}, ok: true, left: "b"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ann := &user{Name: "ann", QuotaBytes: byteSize(tt.bytes), QuotaFiles: tt.files, WhenFull: "rotate"}
			b := newHouseBox(t, ann)
			b.write(ann)
			b.file("share/oldest", 1, 100000*time.Hour)
			had := map[string]bool{}
			for _, f := range tt.have {
				b.file("home/"+f.p, f.bytes, time.Duration(f.hours)*time.Hour)
				switch f.kind {
				case "read":
					b.use("home/" + f.p)
				case "partial":
					b.partial("home/" + f.p)
				}
				had[f.p] = true
			}
			j := b.jail("ann")
			b.house.start()
			err := j.reserve(j.home, tt.want.bytes, tt.want.files)
			if (err == nil) != tt.ok {
				t.Errorf("room for %+v: %v", tt.want, err)
			}
			if _, is := errors.AsType[*quotaError](err); err != nil && !is {
				t.Errorf("%v is no error about the quota", err)
			}
			if err == nil {
				if used := b.used(j); tt.bytes > 0 && used.bytes > tt.bytes || tt.files > 0 && used.files > tt.files {
					t.Errorf("%+v are charged", used)
				}
				j.balance.unreserve(tt.want.bytes, tt.want.files)
			}
			if got := b.names("home"); got != tt.left {
				t.Errorf("left %q; want %q", got, tt.left)
			}
			if got := b.names("share"); got != "oldest" {
				t.Errorf("left in the share: %q", got)
			}
			for p := range had {
				_, err := os.Stat(b.path("home/" + p))
				if logged := b.logs("file removed", "user=ann", "path=/"+p+" ", "result=rotated"); err != nil && logged != 1 && !isReserved(p) || err == nil && logged != 0 {
					t.Errorf("%s: logged %d times, on disk: %v", p, logged, err == nil)
				}
			}
			b.agrees(j)
		})
	}
}

// TestRotateForUpload: room is made while an upload runs, or at once where its
// size is announced; never from the file that it replaces, nor from its own.
func TestRotateForUpload(t *testing.T) {
	b := newHouseBox(t, &user{Name: "ann", QuotaBytes: 100, WhenFull: "rotate"})
	b.file("home/f", 50, 3*time.Hour)
	b.file("home/g", 40, 2*time.Hour)
	b.file("home/h", 10, time.Hour)
	j := b.jail("ann")
	b.house.start()
	u := b.begin(j, "/f", uploadStore, -1, 50) // no growth
	if got := b.names("home"); !strings.HasSuffix(got, "f g h") {
		t.Errorf("%q while nothing is needed", got)
	}
	if err := u.announced(80); err != nil {
		t.Error(err)
	}
	if got := b.names("home"); !strings.HasSuffix(got, "f h") {
		t.Errorf("%q after it was announced that 30 bytes more are coming", got)
	}
	if err := writeZeros(u, 40); err != nil { // it was 80 that were announced; 90 need h too, or not
		t.Error(err)
	}
	if err := u.commit(); err != nil {
		t.Error(err)
	}
	if got := b.names("home"); got != "f h" {
		t.Errorf("%q in the end", got)
	}
	b.agrees(j)
	if err := putZeros(j, "/new", uploadStore, -1, 100); err != nil {
		t.Error(err)
	}
	if got := b.names("home"); got != "new" {
		t.Errorf("%q after one that takes all", got)
	}
	b.agrees(j)
	u = b.begin(j, "/huge", uploadStore, -1, 0)
	if err := u.announced(101); err == nil {
		t.Error("101 bytes are let in")
	}
	u.discard()
	if got := b.names("home"); got != "new" {
		t.Errorf("%q after one that cannot fit", got)
	}
}

// TestRotateMany: more old files than one walk keeps, and uploads at the same
// time, each of which gets its room.
func TestRotateMany(t *testing.T) {
	const n = keptOldest + 100
	b := newHouseBox(t, &user{Name: "ann", QuotaFiles: n, WhenFull: "rotate"})
	for i := range n {
		b.file(fmt.Sprintf("home/%04d", i), 1, time.Duration(n-i)*time.Hour)
	}
	j := b.jail("ann")
	b.house.start()
	var failed atomic.Int32
	done := make(chan struct{})
	const uploads, each = 4, (n - 20) / 4
	for w := range uploads {
		go func() {
			defer func() { done <- struct{}{} }()
			for i := range each {
				if putZeros(j, fmt.Sprintf("/new%d-%d", w, i), uploadStore, -1, 1) != nil {
					failed.Add(1)
				}
			}
		}()
	}
	for range uploads {
		<-done
	}
	if failed.Load() > 0 {
		t.Errorf("%d uploads failed", failed.Load())
	}
	b.agrees(j)
	var old []string
	walkNames(t, b.path("home"), func(_, name string) {
		if !strings.HasPrefix(name, "new") && name != "home" {
			old = append(old, name)
		}
	})
	slices.Sort(old)
	if len(old) != n-uploads*each || old[0] != fmt.Sprintf("%04d", uploads*each) {
		t.Errorf("%d old files are left, the oldest is %v; want %d", len(old), old[0], n-uploads*each)
	}
}

// TestRejectDoesNotRotate: who did not ask for it loses nothing.
func TestRejectDoesNotRotate(t *testing.T) {
	b := newHouseBox(t, &user{Name: "ann", QuotaBytes: 100, WhenFull: "reject"})
	b.file("home/a", 100, time.Hour)
	j := b.jail("ann")
	b.house.start()
	if err := putZeros(j, "/b", uploadStore, -1, 1); err == nil {
		t.Error("stored")
	}
	if got := b.names("home"); got != "a" {
		t.Errorf("left %q", got)
	}
}

// --- the operator ---

// TestScan: berth user scan asks the daemon, or counts itself where none runs,
// and both tell what the ledger had.
func TestScan(t *testing.T) {
	file, b := writeConfig(t, "")
	sock := filepath.Join(b.dir, "run", "berth.sock")
	b.configure(t, fmt.Sprintf(quickDrain+"log.format = \"json\"\nlisten = { control = [], datagram = [], http = [], local = [%q] }\n", sock))
	b.user(t, "ann", fmt.Sprintf("uid = %d\nquota_bytes = \"1000B\"\n", os.Getuid()))
	b.user(t, "kernel", "quota = \"filesystem\"\n")
	b.put(t, "f", "123")
	b.put(t, "d/g", "4567")
	scan := func(user, want string) {
		t.Helper()
		code, out, errs := cli(t, "user", "scan", user, "--config", file)
		if code == exitOK && out != want+"\n" || code != exitOK && !strings.Contains(errs, want) {
			t.Errorf("scan %s: %d, %q, %q; want %q", user, code, out, errs, want)
		}
	}
	scan("ann", "ann: 7 bytes in 3 files (the ledger had 0 bytes in 0)")
	scan("ann", "ann: 7 bytes in 3 files (the ledger had 7 bytes in 3)")
	scan("nobody", "nobody")
	scan("kernel", "filesystem")

	p := serveBerth(t, file, nil)
	p.addrs["local"] = sock
	b.put(t, "h", "89")
	scan("ann", "ann: 9 bytes in 4 files (the ledger had 7 bytes in 3)")
	c := p.dial("local")
	c.want("220 *ann*")
	b.put(t, "i", "0")
	c.cmd("SITE SCAN ann", "211 ann: 10 bytes in 5 files (the ledger had 9 bytes in 4)")
	c.cmd("SITE SCAN nobody", "550 *")
	c.cmd("SITE SCAN kernel", "*")
	c.cmd("SITE QUOTA", "211-*", " bytes: 10 used, 1000 allowed, 990 left", " files: 5 used, no limit", " free on the disk: * bytes", "211 *")
	c.cmd("QUIT", "221 *")
	p.signal(syscall.SIGTERM)
	p.ended(exitOK)
	scan("ann", "ann: 10 bytes in 5 files (the ledger had 10 bytes in 5)")
}
