// These tests hold the ledger against the disk: every number it tells must be
// what a walk finds that shares no code with it, and no order of events may let
// it go beyond a quota. The tables here are about numbers and the file they are
// kept in; TestLedgerCases and TestLedgerProperty drive real uploads in a real
// home. What a sweep does with what it finds is in house_test.go.

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// A ledgerBox is a ledger with homes and a share to use it on, and what the disk
// says about them: counted by a walk that shares no code with the product's.
type ledgerBox struct {
	t   testing.TB
	dir string // home, share and state are below it
	js  *jailSet
}

func newLedgerBox(t testing.TB) *ledgerBox {
	t.Helper()
	return newLedgerBoxIn(t, "")
}

func newLedgerBoxIn(t testing.TB, dir string) *ledgerBox {
	t.Helper()
	if dir == "" {
		dir = t.TempDir()
		makeTestFiles(t, dir, []string{"home/", "share/", "state/"})
	}
	b := &ledgerBox{t: t, dir: dir}
	b.js = newJailSet(newLedger(filepath.Join(b.dir, "state"), slog.New(slog.DiscardHandler)))
	t.Cleanup(func() { b.js.ledger.close() })
	return b
}

// enter opens the jail of user, whose home is "home" and who may write to the
// share, and counts it.
func (b *ledgerBox) enter(user string, q quota, more ...func(*jailSpec)) *jail {
	b.t.Helper()
	spec := jailSpec{user: user, home: filepath.Join(b.dir, "home"), quota: q,
		shares: map[string]shareSpec{"share": {path: filepath.Join(b.dir, "share"), write: true}}}
	for _, fn := range more {
		fn(&spec)
	}
	j, err := b.js.enter(spec)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { b.js.leave(j) })
	if j.balance != nil {
		if _, _, known := j.balance.usage(); !known {
			b.count(j)
		}
	}
	return j
}

// at gives the user another home than "home".
func (b *ledgerBox) at(home string) func(*jailSpec) {
	return func(s *jailSpec) { s.home = filepath.Join(b.dir, home) }
}

// count is a sweep that only counts.
func (b *ledgerBox) count(j *jail) (was, is ledgerEntry) {
	b.t.Helper()
	was, is, _, err := (&sweep{j: j, pace: func() error { return nil }}).count()
	if err != nil {
		b.t.Fatal(err)
	}
	return was, is
}

// diskUse walks a tree: what names below it take. With an owner only what is
// his in a share counts.
func diskUse(t testing.TB, dir, owner string) (q quota) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		if owner != "" {
			var name [256]byte
			if n, err := unix.Lgetxattr(p, shareOwnerXattr, name[:]); err != nil || string(name[:n]) != owner {
				return nil
			}
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		q.files++
		if info.Mode().IsRegular() {
			q.bytes += info.Size()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// disk is what a walk says about a home, and about what those whose home it is
// have in the share.
func (b *ledgerBox) disk(j *jail) quota {
	b.t.Helper()
	q := diskUse(b.t, homeOf(j), "")
	b.js.ledger.mu.Lock()
	defer b.js.ledger.mu.Unlock()
	for name, balance := range b.js.ledger.users {
		if balance == j.balance {
			s := diskUse(b.t, filepath.Join(b.dir, "share"), name)
			q.bytes, q.files = q.bytes+s.bytes, q.files+s.files
		}
	}
	return q
}

// homeOf is where a jail's home is.
func homeOf(j *jail) string {
	home, _, _ := strings.Cut(j.key.trees, "\x00")
	return home
}

// used is what the ledger says.
func (b *ledgerBox) used(j *jail) quota {
	bytes, files, _ := j.balance.usage()
	return quota{bytes, files}
}

// agrees compares ledger and disk.
func (b *ledgerBox) agrees(j *jail) {
	b.t.Helper()
	if ledger, disk := b.used(j), b.disk(j); ledger != disk {
		b.t.Errorf("%s: the ledger has %d bytes in %d files, the disk %d in %d", j.key.user, ledger.bytes, ledger.files, disk.bytes, disk.files)
	}
}

func (b *ledgerBox) path(p string) string { return filepath.Join(b.dir, p) }

// begin begins an upload of n bytes and leaves it open.
func (b *ledgerBox) begin(j *jail, p string, kind uploadKind, offset, n int64) *upload {
	b.t.Helper()
	u, err := j.create(p, kind, offset, false)
	if err != nil {
		b.t.Fatalf("create %s: %v", p, err)
	}
	if err := writeZeros(u, n); err != nil {
		b.t.Fatalf("write %d to %s: %v", n, p, err)
	}
	return u
}

// put uploads n bytes to p.
func (b *ledgerBox) put(j *jail, p string, n int64) {
	b.t.Helper()
	if err := putZeros(j, p, uploadStore, -1, n); err != nil {
		b.t.Fatalf("store %s: %v", p, err)
	}
}

func writeZeros(u *upload, n int64) error {
	buf := make([]byte, min(n, 256<<10))
	for n > 0 {
		k, err := u.Write(buf[:min(n, int64(len(buf)))])
		n -= int64(k)
		if err != nil {
			return err
		}
	}
	return nil
}

// putZeros ends an upload as a session does: there is no room for one that is
// refused, and every other failure is an interruption.
func putZeros(j *jail, p string, kind uploadKind, offset, n int64) error {
	u, err := j.create(p, kind, offset, false)
	if err != nil {
		return err
	}
	if err := writeZeros(u, n); err != nil {
		endUpload(u, err)
		return err
	}
	return u.commit()
}

func endUpload(u *upload, err error) {
	var full *quotaError
	if errors.As(err, &full) {
		u.refuse()
	} else {
		u.interrupt()
	}
}

// walkNames tells fn of every name below dir.
func walkNames(t testing.TB, dir string, fn func(p, name string)) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err == nil {
			fn(p, e.Name())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// --- the numbers ---

// TestReserve: a reservation is granted in whole or not at all, and never beyond
// the quota.
func TestReserve(t *testing.T) {
	const all = math.MaxInt64
	tests := []struct {
		name         string
		q            quota
		has          quota
		bytes, files int64
		full         string // what there is no room for: "bytes", "files" or ""
		left         int64
	}{
		{name: "no quota", bytes: 1 << 40, files: 1},
		{name: "no quota, all there is", bytes: all, files: all},
		{name: "nothing wanted", q: quota{1, 1}, has: quota{1, 1}},
		{name: "the one byte", q: quota{1, 0}, bytes: 1, files: 1},
		{name: "one byte too many", q: quota{1, 0}, bytes: 2, files: 1, full: "bytes", left: 1},
		{name: "to the brim", q: quota{100, 0}, has: quota{60, 3}, bytes: 40},
		{name: "over the brim", q: quota{100, 0}, has: quota{60, 3}, bytes: 41, full: "bytes", left: 40},
		{name: "largest quota, all at once", q: quota{all, all}, bytes: all, files: all},
		{name: "largest quota, one over", q: quota{all, 0}, has: quota{1, 0}, bytes: all, full: "bytes", left: all - 1},
		{name: "over the quota already", q: quota{100, 0}, has: quota{150, 0}, bytes: 1, full: "bytes"},
		{name: "over the quota already, no byte more", q: quota{100, 0}, has: quota{150, 0}, files: 1},
		{name: "the last file", q: quota{0, 3}, has: quota{0, 2}, files: 1},
		{name: "one file too many", q: quota{0, 3}, has: quota{0, 3}, files: 1, full: "files"},
		{name: "one file too many, bytes left", q: quota{100, 3}, has: quota{40, 3}, bytes: 10, files: 1, full: "files", left: 60},
		{name: "bytes for a file that is there", q: quota{0, 3}, has: quota{0, 3}, bytes: 10},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := &balance{known: true, exact: true, bytes: tt.has.bytes, files: tt.has.files}
			if got := b.has(tt.q, tt.bytes, tt.files); got != (tt.full == "") {
				t.Errorf("has: %t", got)
			}
			err := b.reserve(tt.q, tt.bytes, tt.files)
			want := tt.has
			if tt.full == "" {
				want = quota{tt.has.bytes + tt.bytes, tt.has.files + tt.files}
				if err != nil {
					t.Errorf("refused: %v", err)
				}
			} else if e, ok := errors.AsType[*quotaError](err); !ok || e.full != (tt.full == "files") || e.left != tt.left {
				t.Errorf("error %#v; want one about %s with %d left", err, tt.full, tt.left)
			}
			if bytes, files, known := b.usage(); bytes != want.bytes || files != want.files || !known {
				t.Errorf("afterwards %d bytes in %d files, known: %t; want %+v", bytes, files, known, want)
			}
		})
	}
}

// TestChanges: what each change of names does to a balance, and how far off it
// makes a count that was made meanwhile.
func TestChanges(t *testing.T) {
	tests := []struct {
		name     string
		fn       func(b *balance)
		want     quota // of 100 bytes in 2 files
		inflight quota
		moved    quota
		doubt    bool
	}{
		{name: "reserve", fn: func(b *balance) { b.reserve(quota{}, 50, 1) }, want: quota{150, 3}, inflight: quota{50, 1}},
		{name: "unreserve", fn: func(b *balance) { b.reserve(quota{}, 50, 1); b.unreserve(50, 1) }, want: quota{100, 2}},
		{name: "land", fn: func(b *balance) { b.reserve(quota{}, 60, 1); b.land(quota{60, 1}, quota{50, 1}, quota{}) }, want: quota{150, 3}, moved: quota{50, 1}},
		{name: "land on another file", fn: func(b *balance) { b.reserve(quota{}, 20, 0); b.land(quota{20, 0}, quota{50, 1}, quota{30, 1}) }, want: quota{120, 2}, moved: quota{80, 2}},
		{name: "lift", fn: func(b *balance) { b.lift(40, 1) }, want: quota{100, 2}, inflight: quota{40, 1}, moved: quota{40, 1}},
		{name: "lift and give back", fn: func(b *balance) { b.lift(40, 1); b.unreserve(40, 1) }, want: quota{60, 1}, moved: quota{40, 1}},
		{name: "take", fn: func(b *balance) { b.take(1000, 1) }, want: quota{1100, 3}, inflight: quota{1000, 1}},
		{name: "drop", fn: func(b *balance) { b.drop(100, 1) }, want: quota{0, 1}, moved: quota{100, 1}},
		{name: "drop more bytes than there were", fn: func(b *balance) { b.drop(101, 1) }, want: quota{0, 1}, moved: quota{101, 1}, doubt: true},
		{name: "drop more files than there were", fn: func(b *balance) { b.drop(50, 3) }, want: quota{50, 0}, moved: quota{50, 3}, doubt: true},
		{name: "shift", fn: func(b *balance) { b.shift(40) }, want: quota{100, 2}, moved: quota{40, 1}},
		{name: "larger than a number", fn: func(b *balance) { b.take(math.MaxInt64, 1) }, want: quota{math.MaxInt64, 3}, inflight: quota{math.MaxInt64, 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := &balance{known: true, exact: true, bytes: 100, files: 2}
			tt.fn(b)
			if got := (quota{b.bytes, b.files}); got != tt.want || b.exact == tt.doubt {
				t.Errorf("%+v, exact: %t; want %+v, %t", got, b.exact, tt.want, !tt.doubt)
			}
			if b.inflight != tt.inflight || b.moved != tt.moved {
				t.Errorf("%+v in flight, %+v moved; want %+v, %+v", b.inflight, b.moved, tt.inflight, tt.moved)
			}
		})
	}
}

// TestNilBalance: where nothing is counted, nothing is refused.
func TestNilBalance(t *testing.T) {
	var b *balance
	b.begin()
	b.take(1, 1)
	b.drop(1, 1)
	if err := b.reserve(quota{1, 1}, 2, 2); err != nil {
		t.Error(err)
	}
	if err := b.wait(time.Hour, nil); err != nil {
		t.Error(err)
	}
	if _, limited := b.left(quota{1, 1}); limited {
		t.Error("a limit is told")
	}
	b.end()
}

// TestLeft: nothing is said where nothing is known, and never less than 0.
func TestLeft(t *testing.T) {
	for _, tt := range []struct {
		b       *balance
		q       quota
		left    int64
		limited bool
	}{
		{&balance{known: true, bytes: 40}, quota{100, 0}, 60, true},
		{&balance{known: true, bytes: 140}, quota{100, 0}, 0, true},
		{&balance{known: true, bytes: 40}, quota{0, 5}, 0, false},
		{&balance{bytes: 40}, quota{100, 0}, 0, false},
	} {
		if left, limited := tt.b.left(tt.q); left != tt.left || limited != tt.limited {
			t.Errorf("%d of %+v: %d, %t; want %d, %t", tt.b.bytes, tt.q, left, limited, tt.left, tt.limited)
		}
	}
}

// steady is a share in which nothing is going on.
func steady() bool { return true }

// TestCounting: before the first count no quota is believed to have room, and
// who waits for it is let in by its end.
func TestCounting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &balance{}
		if err := b.reserve(quota{100, 0}, 1, 1); !errors.Is(err, errCounting) {
			t.Errorf("bytes: %v", err)
		}
		if err := b.reserve(quota{0, 100}, 0, 1); !errors.Is(err, errCounting) {
			t.Errorf("files: %v", err)
		}
		if err := b.reserve(quota{}, 5, 1); err != nil {
			t.Errorf("no quota: %v", err)
		}
		if err := b.reserve(quota{100, 0}, 0, 1); err != nil {
			t.Errorf("a file, where only bytes are limited: %v", err)
		}
		begin := time.Now()
		if err := b.wait(3*time.Second, nil); !errors.Is(err, errCounting) || time.Since(begin) != 3*time.Second {
			t.Errorf("wait: %v after %v", err, time.Since(begin))
		}
		go func() {
			time.Sleep(time.Second)
			b.settle(b.mark(), 60, 3, true, steady)
		}()
		begin = time.Now()
		if err := b.wait(3*time.Second, nil); err != nil || time.Since(begin) != time.Second {
			t.Errorf("wait: %v after %v", err, time.Since(begin))
		}
		if bytes, files, known := b.usage(); bytes != 65 || files != 5 || !known { // with what is on its way
			t.Errorf("counted %d bytes in %d files, known: %t", bytes, files, known)
		}
		if err := b.wait(0, nil); err != nil {
			t.Errorf("wait once it is known: %v", err)
		}
	})
}

// TestSettle: a count of a quiet home is the truth; one that was disturbed moves
// the ledger only as far as the disturbance cannot explain. Staging files are in
// no count, and stay charged.
func TestSettle(t *testing.T) {
	store := func(b *balance, bytes, files int64) {
		b.reserve(quota{}, bytes, files)
		b.land(quota{bytes, files}, quota{bytes, files}, quota{})
	}
	tests := []struct {
		name   string
		ledger quota
		during func(b *balance)
		count  quota
		part   bool // it could not look everywhere
		want   quota
		quiet  bool // nothing moved meanwhile
		doubt  bool // nor is it exact as far as berth's own doing goes
	}{
		{name: "quiet, as it was", ledger: quota{100, 2}, count: quota{100, 2}, want: quota{100, 2}, quiet: true},
		{name: "quiet, more from outside", ledger: quota{100, 2}, count: quota{500, 4}, want: quota{500, 4}, quiet: true},
		{name: "quiet, less from outside", ledger: quota{100, 2}, count: quota{0, 0}, want: quota{0, 0}, quiet: true},
		{name: "stored, and counted", ledger: quota{100, 2}, during: func(b *balance) { store(b, 50, 1) }, count: quota{150, 3}, want: quota{150, 3}},
		{name: "stored, and missed", ledger: quota{100, 2}, during: func(b *balance) { store(b, 50, 1) }, count: quota{100, 2}, want: quota{150, 3}},
		{name: "removed, but counted before", ledger: quota{100, 2}, during: func(b *balance) { b.drop(50, 1) }, count: quota{100, 2}, want: quota{50, 1}},
		{name: "stored and removed, but counted between", ledger: quota{100, 2}, during: func(b *balance) { store(b, 50, 1); b.drop(50, 1) }, count: quota{150, 3}, want: quota{100, 2}},
		{name: "renamed, and missed", ledger: quota{100, 2}, during: func(b *balance) { b.shift(80) }, count: quota{20, 1}, want: quota{100, 2}},
		{name: "renamed, and counted twice", ledger: quota{100, 2}, during: func(b *balance) { b.shift(80) }, count: quota{180, 3}, want: quota{100, 2}},
		{name: "a directory renamed, and missed", ledger: quota{100, 2}, during: func(b *balance) { b.shift(-1) }, count: quota{0, 0}, want: quota{100, 2}, doubt: true},
		{name: "far more from outside", ledger: quota{100, 2}, during: func(b *balance) { store(b, 50, 1) }, count: quota{1000, 20}, want: quota{950, 19}},
		{name: "far less", ledger: quota{1000, 20}, during: func(b *balance) { b.drop(50, 1) }, count: quota{100, 2}, want: quota{150, 3}},
		{name: "an upload is running", ledger: quota{100, 2}, during: func(b *balance) { b.reserve(quota{}, 50, 1) }, count: quota{100, 2}, want: quota{150, 3}, quiet: true},
		{name: "a partial is resumed", ledger: quota{100, 2}, during: func(b *balance) { b.lift(50, 1) }, count: quota{50, 1}, want: quota{100, 2}},
		{name: "in the middle of a change", ledger: quota{100, 2}, during: func(b *balance) { b.begin() }, count: quota{0, 0}, want: quota{100, 2}, doubt: true},
		{name: "could not look everywhere", ledger: quota{100, 2}, count: quota{40, 1}, part: true, want: quota{100, 2}, doubt: true},
		{name: "could not look everywhere, and saw more", ledger: quota{100, 2}, count: quota{140, 1}, part: true, want: quota{140, 2}, doubt: true},
		{name: "could not look everywhere, and saw what went", ledger: quota{100, 2}, during: func(b *balance) { b.drop(50, 1) }, count: quota{100, 2}, part: true, want: quota{50, 1}, doubt: true},
		{name: "could not look everywhere, and a directory was renamed", ledger: quota{100, 2}, during: func(b *balance) { b.shift(-1) }, count: quota{200, 4}, part: true, want: quota{100, 2}, doubt: true},
		{name: "beyond all numbers", ledger: quota{100, 2}, during: func(b *balance) { store(b, 50, 1) }, count: quota{math.MaxInt64, 3}, want: quota{math.MaxInt64 - 50, 3}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := &balance{known: true, exact: true, bytes: tt.ledger.bytes, files: tt.ledger.files}
			m := b.mark()
			if tt.during != nil {
				tt.during(b)
			}
			before := quota{b.bytes, b.files}
			was, is, quiet := b.settle(m, tt.count.bytes, tt.count.files, !tt.part, steady)
			if got := (quota{was.Bytes, was.Files}); got != before {
				t.Errorf("told to have been %+v; was %+v", got, before)
			}
			if got := (quota{is.Bytes, is.Files}); got != tt.want || quiet != tt.quiet || is.Exact == tt.doubt {
				t.Errorf("%+v, quiet: %t, exact: %t; want %+v, %t, %t", got, quiet, is.Exact, tt.want, tt.quiet, !tt.doubt)
			}
			// The next quiet count mends whatever was left open.
			b.busy = 0
			if _, is, _ = b.settle(b.mark(), 7, 7, true, steady); is.Bytes != 7+b.inflight.bytes || is.Files != 7+b.inflight.files || !is.Exact {
				t.Errorf("after a quiet count %+v", is)
			}
		})
	}
}

// --- the file ---

// ledgerText is a ledger file as save would write it, with a checksum that
// matches whatever balances says.
func ledgerText(version int, clean bool, balances string) string {
	sum := sha256.Sum256([]byte(balances))
	return fmt.Sprintf("{\"berth_ledger\":%d,\"clean\":%t,\"balances\":%s,\"sha256\":%q}\n", version, clean, balances, hex.EncodeToString(sum[:]))
}

const ledgerLine = `[{"home":"/srv/ann","inode":7,"bytes":123,"files":4,"exact":true}]`

// TestReadLedger: what is not whole is not believed.
func TestReadLedger(t *testing.T) {
	good := ledgerText(ledgerVersion, true, ledgerLine)
	tests := []struct {
		name, text string
		err        string // part of the error; "" is none
	}{
		{"whole", good, ""},
		{"with white space", strings.ReplaceAll(good, `,"`, ",\n\t\""), ""},
		{"no homes", ledgerText(ledgerVersion, true, "[]"), ""},
		{"null", ledgerText(ledgerVersion, true, "null"), ""},
		{"with what a later berth adds", ledgerText(ledgerVersion, true, strings.Replace(ledgerLine, "{", `{"new":1,`, 1)), ""},
		{"empty", "", "unexpected end"},
		{"zeros", strings.Repeat("\x00", 4096), "invalid character"},
		{"cut", good[:len(good)/2], "unexpected end"},
		{"two of them", good + good, "after top-level value"},
		{"not an object", "[]", "cannot unmarshal"},
		{"nothing in it", "{}", "version 0"},
		{"another version", ledgerText(ledgerVersion+1, true, ledgerLine), "version 2"},
		{"no balances", `{"berth_ledger":1,"clean":true}`, "unexpected end"},
		{"another sum", strings.Replace(good, "123", "124", 1), "checksum"},
		{"no sum", strings.Replace(good, `"sha256":"`, `"other":"`, 1), "checksum"},
		{"not homes", ledgerText(ledgerVersion, true, `{"a":1}`), "cannot unmarshal"},
		{"negative bytes", ledgerText(ledgerVersion, true, strings.Replace(ledgerLine, "123", "-1", 1)), "negative numbers for /srv/ann"},
		{"negative files", ledgerText(ledgerVersion, true, strings.Replace(ledgerLine, ":4", ":-4", 1)), "negative numbers for /srv/ann"},
		{"beyond 63 bits", ledgerText(ledgerVersion, true, strings.Replace(ledgerLine, "123", "9223372036854775808", 1)), "cannot unmarshal"},
		{"largest", ledgerText(ledgerVersion, true, strings.Replace(ledgerLine, "123", "9223372036854775807", 1)), ""},
		{"fractions", ledgerText(ledgerVersion, true, strings.Replace(ledgerLine, "123", "1.5", 1)), "cannot unmarshal"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), ledgerName)
			if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			entries, clean, err := readLedger(file)
			if tt.err == "" && (err != nil || !clean) || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err) || entries != nil || clean) {
				t.Errorf("%v, clean: %t, error %v; want %q", entries, clean, err, tt.err)
			}
		})
	}
	t.Run("flipped bits", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), ledgerName)
		want := []ledgerEntry{{Home: "/srv/ann", Inode: 7, Bytes: 123, Files: 4, Exact: true}}
		for i := 0; i < len(good)*8; i += 5 {
			flipped := []byte(good)
			flipped[i/8] ^= 1 << (i % 8)
			if err := os.WriteFile(file, flipped, 0o600); err != nil {
				t.Fatal(err)
			}
			// A flip in "clean" or in white space can go unnoticed by the sum; no flip
			// may change a figure, or make an unclean ledger of the last run a clean one.
			if entries, _, err := readLedger(file); err == nil && !slices.Equal(entries, want) {
				t.Errorf("bit %d flipped: %q reads as %+v", i, flipped, entries)
			}
		}
	})
	t.Run("too large", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), ledgerName)
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(file, maxLedgerBytes+1); err != nil {
			t.Fatal(err)
		}
		if _, _, err := readLedger(file); err == nil || !strings.Contains(err.Error(), "more than") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("a directory", func(t *testing.T) {
		if entries, _, err := readLedger(t.TempDir()); err == nil {
			t.Errorf("read %v", entries)
		}
	})
}

// FuzzReadLedger: whatever lies in the state directory, figures that are not
// covered by a checksum, or negative, are never taken over.
func FuzzReadLedger(f *testing.F) {
	f.Add([]byte(ledgerText(ledgerVersion, true, ledgerLine)))
	f.Add([]byte(ledgerText(ledgerVersion, false, "[]")))
	f.Add([]byte(ledgerText(ledgerVersion, true, strings.Replace(ledgerLine, "123", "-1", 1))))
	f.Add([]byte(`{"berth_ledger":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(t.TempDir(), ledgerName)
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		entries, clean, err := readLedger(file)
		if err != nil {
			if entries != nil || clean {
				t.Fatalf("with the error %v come %v and clean: %t", err, entries, clean)
			}
			return
		}
		var lf ledgerFile
		var compact bytes.Buffer
		if json.Unmarshal(data, &lf) != nil || json.Compact(&compact, lf.Balances) != nil {
			t.Fatalf("%q is read, and is no JSON", data)
		}
		if sum := sha256.Sum256(compact.Bytes()); hex.EncodeToString(sum[:]) != lf.Sum {
			t.Fatalf("%q is read, and its sum is %x", data, sum)
		}
		for _, e := range entries {
			if e.Bytes < 0 || e.Files < 0 {
				t.Fatalf("%+v", e)
			}
		}
	})
}

// TestLedgerKept: what the next berth takes over from the last one, and whether
// it has to count.
func TestLedgerKept(t *testing.T) {
	const kept, doubted, unknown = "exact", "known, to be counted", "unknown"
	tests := []struct {
		name string
		// between is what happens from the last save to the next start; l is the ledger
		// of the first run, home what a balance of 60 bytes in 3 files was opened for.
		between func(t *testing.T, l *ledger, b *balance, home string)
		want    string
		warn    string // part of the log
	}{
		{name: "ended in order", between: func(t *testing.T, l *ledger, b *balance, home string) {
			saveLedger(t, l, "ann", home, true)
		}, want: kept},
		{name: "killed", between: func(t *testing.T, l *ledger, b *balance, home string) {
			saveLedger(t, l, "ann", home, false)
		}, want: doubted, warn: "did not end in order"},
		{name: "killed before the first save", between: func(t *testing.T, l *ledger, b *balance, home string) {
		}, want: unknown},
		{name: "ended while an upload was running", between: func(t *testing.T, l *ledger, b *balance, home string) {
			b.drop(0, 1)
			b.reserve(quota{}, 0, 1)
			saveLedger(t, l, "ann", home, true)
		}, want: doubted},
		{name: "more taken away than there was", between: func(t *testing.T, l *ledger, b *balance, home string) {
			b.drop(100, 0)
			b.take(60, 0)
			b.land(quota{60, 0}, quota{60, 0}, quota{})
			saveLedger(t, l, "ann", home, true)
		}, want: doubted},
		{name: "another directory in the home's place", between: func(t *testing.T, l *ledger, b *balance, home string) {
			saveLedger(t, l, "ann", home, true)
			if err := os.Rename(home, home+".old"); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(home, 0o700); err != nil {
				t.Fatal(err)
			}
		}, want: unknown},
		{name: "cut", between: func(t *testing.T, l *ledger, b *balance, home string) {
			saveLedger(t, l, "ann", home, true)
			if err := os.Truncate(filepath.Join(l.dir, ledgerName), 40); err != nil {
				t.Fatal(err)
			}
		}, want: unknown, warn: "cannot be used; all homes are counted"},
		{name: "a directory in its place", between: func(t *testing.T, l *ledger, b *balance, home string) {
			if err := os.Mkdir(filepath.Join(l.dir, ledgerName), 0o700); err != nil {
				t.Fatal(err)
			}
		}, want: unknown, warn: "cannot be used; all homes are counted"},
		{name: "removed", between: func(t *testing.T, l *ledger, b *balance, home string) {
			saveLedger(t, l, "ann", home, true)
			if err := os.Remove(filepath.Join(l.dir, ledgerName)); err != nil {
				t.Fatal(err)
			}
		}, want: unknown},
		{name: "the user is gone", between: func(t *testing.T, l *ledger, b *balance, home string) {
			if err := l.save(nil, true); err != nil {
				t.Fatal(err)
			}
		}, want: unknown},
		{name: "not seen for a run", between: func(t *testing.T, l *ledger, b *balance, home string) {
			saveLedger(t, l, "ann", home, true)
			l.close()
			idle := newLedger(l.dir, l.log)
			saveLedger(t, idle, "ann", home, true)
			idle.close()
		}, want: kept},
		{name: "not seen for a run, after a crash", between: func(t *testing.T, l *ledger, b *balance, home string) {
			saveLedger(t, l, "ann", home, false)
			l.close()
			idle := newLedger(l.dir, l.log)
			saveLedger(t, idle, "ann", home, true)
			idle.close()
		}, want: doubted},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			makeTestFiles(t, dir, []string{"home/", "state/"})
			home := filepath.Join(dir, "home")
			l := newLedger(filepath.Join(dir, "state"), slog.New(slog.DiscardHandler))
			b := l.open("ann", home, dirID(t, home), 1, true)
			b.take(60, 3)
			b.land(quota{60, 3}, quota{60, 3}, quota{})
			tt.between(t, l, b, home)
			l.close()

			var log syncBuffer
			l = newLedger(l.dir, slog.New(slog.NewTextHandler(&log, nil)))
			defer l.close()
			if tt.warn != "" && !strings.Contains(log.String(), tt.warn) || tt.warn == "" && log.String() != "" {
				t.Errorf("logged %q; want %q", log.String(), tt.warn)
			}
			b = l.open("ann", home, dirID(t, home), 1, false)
			bytes, files, known := b.usage()
			got := unknown
			if known && (bytes != 60 || files != 3) {
				t.Errorf("%d bytes in %d files", bytes, files)
			}
			if known {
				got = doubted
			}
			if b.exact {
				got = kept
			}
			if got != tt.want {
				t.Errorf("the balance is %s; want %s", got, tt.want)
			}
			if err := b.reserve(quota{100, 0}, 41, 0); err == nil {
				t.Error("41 bytes more are let in, where 60 of 100 are used or nothing is known")
			}
		})
	}
}

func saveLedger(t *testing.T, l *ledger, user, home string, clean bool) {
	t.Helper()
	if err := l.save(map[string]string{user: home}, clean); err != nil {
		t.Fatal(err)
	}
}

func dirID(t testing.TB, dir string) fileID {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	return fileID{uint64(st.Dev), st.Ino}
}

// TestLedgerOfTwo: the second berth on a state directory counts for itself and
// leaves the file to the first one.
func TestLedgerOfTwo(t *testing.T) {
	dir := t.TempDir()
	first := newLedger(dir, slog.New(slog.DiscardHandler))
	first.open("ann", "/ann", fileID{1, 2}, 1, true).take(5, 1)
	saveLedger(t, first, "ann", "/ann", false)
	text, err := os.ReadFile(filepath.Join(dir, ledgerName))
	if err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	second := newLedger(dir, slog.New(slog.NewTextHandler(&log, nil)))
	if !strings.Contains(log.String(), "another berth keeps") {
		t.Errorf("logged %q", log.String())
	}
	if _, _, known := second.open("ann", "/ann", fileID{1, 2}, 1, false).usage(); known {
		t.Error("the second one believes what the first one has still to write")
	}
	second.open("bob", "/bob", fileID{1, 3}, 1, true)
	saveLedger(t, second, "bob", "/bob", true)
	second.close()
	if now, err := os.ReadFile(filepath.Join(dir, ledgerName)); err != nil || !bytes.Equal(now, text) {
		t.Errorf("the second one wrote %q, %v", now, err)
	}
	first.close()
	third := newLedger(dir, slog.New(slog.DiscardHandler))
	defer third.close()
	if third.lock == nil {
		t.Error("the lock outlives its holder")
	}
}

// TestLedgerUnwritable: without a place to keep it the ledger counts all the
// same, and keeps what was not written marked as such.
func TestLedgerUnwritable(t *testing.T) {
	dir := t.TempDir()
	l := newLedger(filepath.Join(dir, "gone"), slog.New(slog.DiscardHandler))
	if b := l.open("ann", "/ann", fileID{1, 2}, 1, true); b.reserve(quota{10, 0}, 11, 0) == nil {
		t.Error("no quota without a state directory")
	}
	saveLedger(t, l, "ann", "/ann", true)
	l.close()

	state := filepath.Join(dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	l = newLedger(state, slog.New(slog.DiscardHandler))
	defer l.close()
	l.open("ann", "/ann", fileID{1, 2}, 1, true).take(5, 1)
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
	if err := l.save(map[string]string{"ann": "/ann"}, false); err == nil {
		t.Error("saved to nowhere")
	}
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	saveLedger(t, l, "ann", "/ann", false) // although nothing has changed since
	if entries, clean, err := readLedger(filepath.Join(state, ledgerName)); err != nil || clean || len(entries) != 1 || entries[0].Bytes != 5 {
		t.Errorf("kept %v, clean: %t, %v", entries, clean, err)
	}
	if info, err := os.Stat(filepath.Join(state, ledgerName)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// TestLedgerMovedHome: a home that two share is one balance, until one of them
// has another; nobody's is forgotten.
func TestLedgerMovedHome(t *testing.T) {
	l := newLedger(t.TempDir(), slog.New(slog.DiscardHandler))
	defer l.close()
	one := l.open("ann", "/one", fileID{1, 1}, 1, true)
	if l.open("bob", "/one", fileID{1, 1}, 1, false) != one {
		t.Error("two balances for one home")
	}
	two := l.open("ann", "/two", fileID{1, 2}, 1, true)
	if two == one || l.user("ann") != two || l.user("bob") != one || len(l.homes) != 2 {
		t.Errorf("after ann's move: %v", l.homes)
	}
	l.open("bob", "/two", fileID{1, 2}, 1, false)
	if len(l.homes) != 1 || l.homes[fileID{1, 2}] != two {
		t.Errorf("after bob's move: %v", l.homes)
	}
	if l.user("eve") != nil || (*ledger)(nil).user("ann") != nil {
		t.Error("a balance for nobody")
	}
}

// TestLedgerMemory: what issue 3 allows a user's balance beyond his
// configuration, in a new ledger and in one taken over from the last run.
func TestLedgerMemory(t *testing.T) {
	const users, most = 10_000, 200
	names, homes := make([]string, users), map[string]string{}
	for i := range users {
		names[i] = fmt.Sprintf("user%05d", i)
		homes[names[i]] = "/srv/homes/" + names[i]
	}
	dir := t.TempDir()
	for _, kept := range []bool{false, true} {
		before := heapInUse()
		l := newLedger(dir, slog.New(slog.DiscardHandler))
		for i := range users {
			l.open(names[i], homes[names[i]], fileID{1, uint64(i + 1)}, 1, !kept)
		}
		got := (heapInUse() - before) / users
		t.Logf("taken over: %t: %d bytes a user", kept, got)
		if got > most {
			t.Errorf("taken over: %t: %d bytes a user; want at most %d", kept, got, most)
		}
		if err := l.save(homes, true); err != nil {
			t.Fatal(err)
		}
		if len(l.homes) != users || kept && !l.homes[fileID{1, 1}].exact {
			t.Errorf("%d balances", len(l.homes))
		}
		l.close()
	}
}

func heapInUse() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what the first one's sweep left
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// --- uploads against the ledger ---

const testMB = 1 << 20

// quotaTest is a home and a share with ann (10 MiB, 8 files) and bob, who has a
// home of his own and the same share.
type quotaTest struct {
	*ledgerBox
	ann, bob *jail
}

// refused expects an error about the quota.
func (b *quotaTest) refused(err error) {
	b.t.Helper()
	if _, ok := errors.AsType[*quotaError](err); !ok {
		b.t.Errorf("error %v; want one about the quota", err)
	}
}

func (b *quotaTest) ok(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Error(err)
	}
}

// uses compares what the ledger says of j with mib MiB in so many files.
func (b *quotaTest) uses(j *jail, mib float64, files int64) {
	b.t.Helper()
	if got, want := b.used(j), (quota{int64(mib * testMB), files}); got != want {
		b.t.Errorf("%s: %d bytes in %d files are charged; want %d in %d", j.key.user, got.bytes, got.files, want.bytes, want.files)
	}
}

// size of what ann has at p; -1 is nothing.
func (b *quotaTest) size(p string) int64 {
	e, err := b.ann.stat(p)
	if err != nil {
		return -1
	}
	return e.size
}

// TestLedgerCases are the cases of contract sections 5 and 6 one by one. Each ends
// with a ledger that has what the disk has, and no staging file.
func TestLedgerCases(t *testing.T) {
	tests := []struct {
		name string
		run  func(b *quotaTest)
	}{
		{"a replaced file is charged for its growth", func(b *quotaTest) {
			b.put(b.ann, "/f", 6*testMB)
			b.uses(b.ann, 6, 1)
			for _, n := range []int64{6, 9, 6, 10} {
				u := b.begin(b.ann, "/f", uploadStore, -1, n*testMB)
				if most := max(b.size("/f"), n*testMB); b.used(b.ann).bytes != most {
					b.t.Errorf("%d MiB over %d: %d charged before the end", n, b.size("/f"), b.used(b.ann).bytes)
				}
				b.ok(u.commit())
				b.uses(b.ann, float64(n), 1)
			}
			b.refused(putZeros(b.ann, "/f", uploadStore, -1, 11*testMB))
			if b.size("/f") != 10*testMB {
				b.t.Errorf("the old file has %d bytes", b.size("/f"))
			}
			b.uses(b.ann, 10, 1)
		}},
		{"to the last byte", func(b *quotaTest) {
			b.put(b.ann, "/f", 10*testMB-1)
			b.put(b.ann, "/g", 1)
			b.refused(putZeros(b.ann, "/h", uploadStore, -1, 1))
			b.put(b.ann, "/h", 0)
		}},
		{"the old file goes while its replacement comes", func(b *quotaTest) {
			b.put(b.ann, "/f", 6*testMB)
			u := b.begin(b.ann, "/f", uploadStore, -1, 6*testMB)
			b.ok(b.ann.remove("/f"))
			b.ok(u.commit())
			b.uses(b.ann, 6, 1)
		}},
		{"the old file goes, and its room is taken", func(b *quotaTest) {
			b.put(b.ann, "/f", 6*testMB)
			u := b.begin(b.ann, "/f", uploadStore, -1, 6*testMB)
			b.ok(b.ann.remove("/f"))
			b.put(b.ann, "/g", 5*testMB)
			b.refused(u.commit())
			b.uses(b.ann, 5, 1)
		}},
		{"the old file is renamed away", func(b *quotaTest) {
			b.put(b.ann, "/f", 4*testMB)
			u := b.begin(b.ann, "/f", uploadStore, -1, 4*testMB)
			b.ok(b.ann.rename("/f", "/g", true))
			b.ok(u.commit())
			b.uses(b.ann, 8, 2)
			u = b.begin(b.ann, "/f", uploadStore, -1, 4*testMB)
			b.ok(b.ann.rename("/g", "/f", true))
			b.ok(u.commit())
			b.uses(b.ann, 4, 1)
		}},
		{"another file is renamed over the old one", func(b *quotaTest) {
			b.put(b.ann, "/f", 6*testMB)
			b.put(b.ann, "/g", testMB)
			u := b.begin(b.ann, "/f", uploadStore, -1, 7*testMB)
			b.ok(b.ann.rename("/g", "/f", true))
			b.uses(b.ann, 2, 1) // the file and the growth
			b.ok(u.commit())
			b.uses(b.ann, 7, 1)
		}},
		{"two uploads over one name", func(b *quotaTest) {
			b.put(b.ann, "/f", 4*testMB)
			one := b.begin(b.ann, "/f", uploadStore, -1, 5*testMB)
			b.uses(b.ann, 5, 1)
			two := b.begin(b.ann, "/f", uploadStore, -1, 4*testMB)
			b.uses(b.ann, 9, 2) // the old file's room is promised to one alone
			b.ok(one.commit())
			b.uses(b.ann, 9, 2)
			b.ok(two.commit())
			b.uses(b.ann, 4, 1)
		}},
		{"two uploads of one new name", func(b *quotaTest) {
			one := b.begin(b.ann, "/f", uploadStore, -1, 4*testMB)
			two := b.begin(b.ann, "/f", uploadStore, -1, 5*testMB)
			b.uses(b.ann, 9, 2)
			b.refused(writeZeros(two, 2*testMB))
			b.ok(one.commit())
			two.refuse()
			b.uses(b.ann, 4, 1)
		}},
		{"APPE over the quota", func(b *quotaTest) {
			b.put(b.ann, "/f", 6*testMB)
			b.refused(putZeros(b.ann, "/f", uploadAppend, -1, 5*testMB))
			b.uses(b.ann, 6, 1)
			b.ok(putZeros(b.ann, "/f", uploadAppend, -1, 4*testMB))
			b.uses(b.ann, 10, 1)
			if b.size("/f") != 10*testMB {
				b.t.Errorf("the file has %d bytes", b.size("/f"))
			}
		}},
		{"REST into a complete file", func(b *quotaTest) {
			b.put(b.ann, "/f", 6*testMB)
			b.ok(putZeros(b.ann, "/f", uploadStore, 4*testMB, testMB))
			b.uses(b.ann, 5, 1)
			b.refused(putZeros(b.ann, "/f", uploadStore, 4*testMB, 7*testMB))
			b.uses(b.ann, 5, 1)
		}},
		{"a partial under its own name, resumed", func(b *quotaTest) {
			b.begin(b.ann, "/f", uploadStore, -1, 4*testMB).interrupt()
			b.uses(b.ann, 4, 1)
			b.refused(putZeros(b.ann, "/f", uploadStore, 4*testMB, 7*testMB))
			b.uses(b.ann, 4, 1)
			b.ok(putZeros(b.ann, "/f", uploadStore, 4*testMB, 6*testMB))
			b.uses(b.ann, 10, 1)
		}},
		{"a partial aside, resumed", func(b *quotaTest) {
			b.put(b.ann, "/f", 3*testMB)
			b.begin(b.ann, "/f", uploadStore, -1, 4*testMB).interrupt()
			b.uses(b.ann, 7, 2)
			u := b.begin(b.ann, "/f", uploadStore, 4*testMB, testMB)
			b.uses(b.ann, 7, 2)
			b.ok(u.commit())
			b.uses(b.ann, 5, 1)
		}},
		{"a partial aside is what fits beside the old file", func(b *quotaTest) {
			b.put(b.ann, "/f", 6*testMB)
			b.begin(b.ann, "/f", uploadStore, -1, 9*testMB).interrupt()
			b.uses(b.ann, 10, 2)
			if e, err := os.Stat(b.path("home/" + partialName("f"))); err != nil || e.Size() != 4*testMB {
				b.t.Errorf("kept aside: %v, %v", e, err)
			}
		}},
		{"DELE takes the partial aside with it", func(b *quotaTest) {
			b.put(b.ann, "/f", 3*testMB)
			b.begin(b.ann, "/f", uploadStore, -1, 4*testMB).interrupt()
			b.ok(b.ann.remove("/f"))
			b.uses(b.ann, 0, 0)
		}},
		{"RMD takes partials with it", func(b *quotaTest) {
			b.ok(b.ann.mkdir("/d"))
			b.put(b.ann, "/d/f", testMB)
			b.begin(b.ann, "/d/f", uploadStore, -1, testMB).interrupt()
			b.ok(b.ann.rename("/d/f", "/f", true))
			b.uses(b.ann, 2, 3)
			b.ok(b.ann.rmdir("/d"))
			b.uses(b.ann, 1, 1)
		}},
		{"an upload without a byte", func(b *quotaTest) {
			b.begin(b.ann, "/f", uploadStore, -1, 0).interrupt()
			b.uses(b.ann, 0, 0)
			b.put(b.ann, "/f", 0)
			b.uses(b.ann, 0, 1)
		}},
		{"STOU", func(b *quotaTest) {
			b.put(b.ann, "/f", testMB)
			b.ok(putZeros(b.ann, "/g", uploadUnique, -1, testMB))
			u := b.begin(b.ann, "/h", uploadUnique, -1, testMB)
			b.put(b.ann, "/h", testMB)
			if err := u.commit(); err == nil {
				b.t.Error("STOU replaced a file")
			}
			b.uses(b.ann, 3, 3)
		}},
		{"quota_files", func(b *quotaTest) {
			for _, name := range []string{"/a", "/b", "/c", "/d"} {
				b.ok(b.ann.mkdir(name))
				b.put(b.ann, name+"/f", 1)
			}
			b.refused(b.ann.mkdir("/e"))
			if err := b.ann.mkdir("/a"); !errors.Is(err, errExists) {
				b.t.Errorf("a directory that is there: %v", err)
			}
			_, err := b.ann.create("/g", uploadStore, -1, false)
			b.refused(err)
			_, err = b.ann.create("/g", uploadUnique, -1, false)
			b.refused(err)
			b.put(b.ann, "/a/f", 2) // it has its place
			b.begin(b.ann, "/a/f", uploadStore, -1, 3).interrupt()
			if _, err := os.Stat(b.path("home/a/" + partialName("f"))); err == nil {
				b.t.Error("a ninth file is kept aside")
			}
			b.ok(b.ann.remove("/a/f"))
			b.ok(b.ann.rmdir("/a"))
			b.ok(b.ann.mkdir("/e"))
			b.put(b.ann, "/e/f", 1)
		}},
		{"hard links count by name", func(b *quotaTest) {
			b.put(b.ann, "/f", 2*testMB)
			b.ok(os.Link(b.path("home/f"), b.path("home/g")))
			b.count(b.ann)
			b.uses(b.ann, 4, 2)
			b.ok(b.ann.rename("/f", "/g", true)) // rename(2) leaves both
			b.uses(b.ann, 4, 2)
			b.ok(b.ann.remove("/f"))
			b.uses(b.ann, 2, 1)
			b.put(b.ann, "/g", testMB)
			b.uses(b.ann, 1, 1)
		}},
		{"a symbolic link is replaced", func(b *quotaTest) {
			b.put(b.ann, "/f", 2*testMB)
			b.ok(os.Symlink("f", b.path("home/l")))
			b.ok(os.Symlink("nowhere", b.path("home/m")))
			b.count(b.ann)
			b.uses(b.ann, 2, 3)
			b.put(b.ann, "/l", 3*testMB)
			b.uses(b.ann, 5, 3)
			b.ok(b.ann.remove("/m"))
			b.uses(b.ann, 5, 2)
		}},
		{"sparse files count whole", func(b *quotaTest) {
			b.ok(os.WriteFile(b.path("home/f"), nil, 0o600))
			b.ok(os.Truncate(b.path("home/f"), 9*testMB))
			b.count(b.ann)
			b.uses(b.ann, 9, 1)
			b.refused(putZeros(b.ann, "/g", uploadStore, -1, 2*testMB))
			b.ok(b.ann.remove("/f"))
			b.uses(b.ann, 0, 0)
		}},
		{"changed from outside", func(b *quotaTest) {
			b.put(b.ann, "/f", 2*testMB)
			b.ok(os.WriteFile(b.path("home/f"), make([]byte, 5*testMB), 0o600))
			b.ok(b.ann.remove("/f"))
			b.uses(b.ann, 0, 0) // never below
			b.put(b.ann, "/g", 3*testMB)
			b.ok(os.WriteFile(b.path("home/h"), make([]byte, 5*testMB), 0o600))
			if was, is := b.count(b.ann); was.Bytes != 3*testMB || is.Bytes != 8*testMB || is.Files != 2 || !is.Exact {
				b.t.Errorf("counted %+v, was %+v", is, was)
			}
		}},
		{"above a quota made smaller", func(b *quotaTest) {
			b.ok(os.WriteFile(b.path("home/f"), make([]byte, 12*testMB), 0o600))
			b.count(b.ann)
			b.refused(putZeros(b.ann, "/g", uploadStore, -1, 1))
			b.refused(putZeros(b.ann, "/f", uploadStore, -1, 13*testMB))
			b.put(b.ann, "/f", 12*testMB) // no growth
			b.put(b.ann, "/f", 11*testMB)
			b.put(b.ann, "/f", 9*testMB)
			b.put(b.ann, "/g", testMB)
		}},
		{"what was announced", func(b *quotaTest) {
			b.put(b.ann, "/f", 6*testMB)
			u := b.begin(b.ann, "/f", uploadStore, -1, 0)
			b.refused(u.announced(11 * testMB))
			b.ok(u.announced(10 * testMB))
			b.uses(b.ann, 6, 1)
			u.discard()
			u = b.begin(b.ann, "/g", uploadStore, -1, testMB)
			b.ok(u.announced(4 * testMB))
			b.refused(u.announced(5 * testMB))
			u.discard()
		}},
		{"a share counts against who stored", func(b *quotaTest) {
			b.put(b.ann, "/share/f", 6*testMB)
			b.uses(b.ann, 6, 1)
			b.uses(b.bob, 0, 0)
			b.refused(putZeros(b.ann, "/g", uploadStore, -1, 5*testMB))
			b.put(b.bob, "/share/f", 2*testMB)
			b.uses(b.ann, 0, 0)
			b.uses(b.bob, 2, 1)
			b.ok(b.ann.remove("/share/f"))
			b.uses(b.bob, 0, 0)
			b.ok(b.ann.mkdir("/share/d"))
			b.uses(b.ann, 0, 1)
			b.ok(b.bob.rmdir("/share/d"))
			b.uses(b.ann, 0, 0)
		}},
		{"a share's files from outside are nobody's", func(b *quotaTest) {
			b.ok(os.WriteFile(b.path("share/f"), make([]byte, 5*testMB), 0o600))
			b.count(b.ann)
			b.uses(b.ann, 0, 0)
			b.ok(b.ann.rename("/share/f", "/share/g", true))
			b.uses(b.ann, 0, 0)
			b.put(b.ann, "/share/g", testMB)
			b.uses(b.ann, 1, 1)
		}},
		{"from home to share and back", func(b *quotaTest) {
			b.put(b.ann, "/f", 6*testMB)
			b.ok(b.ann.rename("/f", "/share/f", true))
			b.uses(b.ann, 6, 1)
			b.agrees(b.ann)
			b.ok(b.bob.rename("/share/f", "/f", true))
			b.uses(b.ann, 0, 0)
			b.uses(b.bob, 6, 1)
			b.put(b.ann, "/share/f", 5*testMB)
			b.refused(b.bob.rename("/share/f", "/g", true))
			b.uses(b.bob, 6, 1)
			b.uses(b.ann, 5, 1)
			b.ok(b.bob.rename("/share/f", "/f", true)) // over his own: less than before
			b.uses(b.bob, 5, 1)
			b.uses(b.ann, 0, 0)
		}},
		{"another one's partial in a share", func(b *quotaTest) {
			b.begin(b.ann, "/share/f", uploadStore, -1, 4*testMB).interrupt()
			b.uses(b.ann, 4, 1)
			u := b.begin(b.bob, "/share/f", uploadStore, 4*testMB, testMB)
			b.uses(b.ann, 0, 0)
			b.uses(b.bob, 5, 1)
			u.interrupt()
			b.uses(b.bob, 5, 1)
			b.put(b.ann, "/g", 6*testMB)
			_, err := b.ann.create("/share/f", uploadStore, 5*testMB, false)
			b.refused(err)
			b.uses(b.bob, 5, 1)
			b.ok(putZeros(b.bob, "/share/f", uploadStore, 5*testMB, testMB))
			b.uses(b.bob, 6, 1)
		}},
		{"a crash", func(b *quotaTest) {
			b.put(b.ann, "/f", 6*testMB)
			u := b.begin(b.ann, "/f", uploadStore, -1, 6*testMB)
			u.file.Close()
			u.dir.close()
			b.js.ledger.close()
			next := newHouseBoxIn(b.t, b.dir, &user{Name: "ann", QuotaBytes: 10 * testMB})
			next.sweep("ann")
			ann := next.jail("ann")
			if got := next.used(ann); got != (quota{10 * testMB, 2}) { // as far as there is room beside the old file
				b.t.Errorf("after the recovery %+v", got)
			}
			next.agrees(ann)
			b.ann.balance.unreserve(u.charged.bytes, u.charged.files) // nobody asks this one any more
			b.count(b.ann)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			needXattr(t, t.TempDir())
			b := &quotaTest{ledgerBox: newLedgerBox(t)}
			b.ann = b.enter("ann", quota{10 * testMB, 8})
			b.bob = b.enter("bob", quota{10 * testMB, 8}, b.at("bob"))
			tt.run(b)
			b.agrees(b.ann)
			b.agrees(b.bob)
			for _, j := range []*jail{b.ann, b.bob} {
				if j.balance.busy != 0 {
					t.Errorf("%s: %d uploads are still going on", j.key.user, j.balance.busy)
				}
			}
			noStaging(t, b.dir)
		})
	}
}

// --- what went wrong once ---

// TestLedgerAdoptFails: a partial that cannot be taken up keeps its charge.
func TestLedgerAdoptFails(t *testing.T) {
	b := newLedgerBox(t)
	needXattr(t, b.dir)
	makeTestFiles(t, b.dir, []string{"home/d/"})
	j := b.enter("ann", quota{10 * testMB, 0})
	b.begin(j, "/d/f", uploadStore, -1, testMB).interrupt()
	b.agrees(j)
	d, err := os.Open(b.path("home/d"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	const appendOnly = 0x20 // FS_APPEND_FL: names can be added, none renamed
	if err := unix.IoctlSetPointerInt(int(d.Fd()), unix.FS_IOC_SETFLAGS, appendOnly); err != nil {
		t.Skipf("append-only directories: %v", err)
	}
	defer unix.IoctlSetPointerInt(int(d.Fd()), unix.FS_IOC_SETFLAGS, 0)
	if u, err := j.create("/d/f", uploadStore, testMB, false); err == nil {
		u.interrupt()
		t.Error("resumed where nothing can be renamed")
	}
	b.agrees(j)
}

// TestLedgerUncountedUser: what a user whose quota the kernel keeps does to
// another's files in a share is told to the other's balance.
func TestLedgerUncountedUser(t *testing.T) {
	for name, op := range map[string]func(bob *jail) error{
		"remove":  func(bob *jail) error { return bob.remove("/share/f") },
		"replace": func(bob *jail) error { return putZeros(bob, "/share/f", uploadStore, -1, 5) },
		"rename":  func(bob *jail) error { return bob.rename("/share/f", "/f", true) },
		"there and back": func(bob *jail) error {
			return errors.Join(bob.rename("/share/f", "/f", true), bob.rename("/f", "/share/f", true))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newLedgerBox(t)
			needXattr(t, b.dir)
			ann := b.enter("ann", quota{10 * testMB, 0})
			bob := b.enter("bob", quota{}, b.at("bob"), func(s *jailSpec) { s.uncounted = true })
			b.put(ann, "/share/f", testMB)
			if err := op(bob); err != nil {
				t.Fatal(err)
			}
			if got := b.used(ann); got != (quota{}) {
				t.Errorf("ann is still charged %+v", got)
			}
			b.agrees(ann)
		})
	}
}

// TestLedgerModeBits: SITE CHMOD makes nothing free, where berth is not root.
func TestLedgerModeBits(t *testing.T) {
	b := newLedgerBox(t)
	needXattr(t, b.dir)
	j := b.enter("ann", quota{10 * testMB, 0})
	asNobody(t, []string{b.dir, b.path("home"), b.path("share")}, func() {
		b.put(j, "/share/f", testMB)
		if err := j.chmod("/share/f", 0); err != nil {
			t.Error(err)
		}
		if _, is := b.count(j); is.Bytes != testMB {
			t.Errorf("with a file of mode 000 in a share %d bytes are counted", is.Bytes)
		}
		if err := j.remove("/share/f"); err != nil {
			t.Error(err)
		}
		if got := b.used(j); got != (quota{}) {
			t.Errorf("after its removal %+v are charged", got)
		}
		if err := j.mkdir("/d"); err != nil {
			t.Error(err)
		}
		b.put(j, "/d/f", 6*testMB)
		if err := j.chmod("/d", 0o300); err != nil {
			t.Error(err)
		}
		b.count(j)
		if err := putZeros(j, "/d/g", uploadStore, -1, 6*testMB); err == nil {
			t.Error("12 MiB under a quota of 10, in a directory of mode 300")
		}
	})
}

// TestLedgerOverflow: sizes that no number holds together are not "0 used".
func TestLedgerOverflow(t *testing.T) {
	b := newLedgerBox(t)
	home := otherDisk(t)
	for i := range 3 {
		p := filepath.Join(home, strconv.Itoa(i))
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(p, 1<<62); err != nil {
			t.Skipf("files of 4 EiB: %v", err)
		}
	}
	j := b.enter("ann", quota{10 * testMB, 0}, func(s *jailSpec) { s.home, s.shares = home, nil })
	if got := b.used(j); got.bytes != math.MaxInt64 || got.files != 3 {
		t.Errorf("%+v are counted", got)
	}
	if err := putZeros(j, "/x", uploadStore, -1, 1); err == nil {
		t.Error("a byte is let in")
	}
}

// TestLedgerHomeMadeAnew: a home that was removed and made again is empty, also
// where the disk gives it the old one's inode, as ext4 does at once.
func TestLedgerHomeMadeAnew(t *testing.T) {
	b := newLedgerBox(t)
	spec := jailSpec{user: "ann", home: b.path("home"), quota: quota{10 * testMB, 0}}
	for range 2 {
		j, err := b.js.enter(spec)
		if err != nil {
			t.Fatal(err)
		}
		b.count(j)
		b.put(j, "/f", 6*testMB)
		b.js.leave(j)
		if err := os.RemoveAll(spec.home); err != nil {
			t.Fatal(err)
		}
		if j, err = b.js.enter(spec); err != nil {
			t.Fatal(err)
		}
		if got := b.used(j); got != (quota{}) {
			t.Errorf("%+v are charged for an empty home", got)
		}
		b.js.leave(j)
	}
}

// TestLedgerMkdirRmdir: a directory made and removed by many at once.
func TestLedgerMkdirRmdir(t *testing.T) {
	for _, name := range []string{"/d", "/share/d"} {
		b := newLedgerBox(t)
		j := b.enter("ann", quota{0, 1000})
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for range 2000 {
					j.mkdir(name)
				}
			})
			wg.Go(func() {
				for range 2000 {
					j.rmdir(name)
				}
			})
		}
		wg.Wait()
		b.agrees(j)
	}
}

// --- everything at once ---

// ledgerSeed is what the property test's choices begin with, so that a run can be
// had again as far as the scheduler lets it; BERTH_TEST_SEED sets it.
func ledgerSeed(t testing.TB) uint64 {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("BERTH_TEST_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("BERTH_TEST_SEED=%d", seed)
	return seed
}

// ledgerRounds is how often the property test starts anew with what the last
// round left; BERTH_TEST_ROUNDS sets it.
func ledgerRounds(t testing.TB) int {
	if s := os.Getenv("BERTH_TEST_ROUNDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return 4
}

// TestLedgerProperty is the promise of contract section 6: whatever sessions do
// to each other's names, while homes are counted, files expire, room is made and
// crashes are recovered from, the ledger never lets a quota be exceeded, and in
// the end it has what the disk has, to the byte, without a count to mend it.
//
// ann and bob share a home under different quotas, eve has her own and loses her
// oldest files when it is full; all three write to one share. Every other round
// ends in a crash: uploads are left as they are, and the ledger in the state
// directory is as old as it happens to be.
func TestLedgerProperty(t *testing.T) {
	seed := ledgerSeed(t)
	t.Run("small", func(t *testing.T) { ledgerProperty(t, seed, 25<<10) })
	// Larger than what a count allows for what is being written.
	t.Run("large", func(t *testing.T) { ledgerProperty(t, seed, pipeSize) })
}

func ledgerProperty(t *testing.T, seed uint64, unit int64) {
	users := []*user{
		{Name: "ann", QuotaBytes: byteSize(12 * unit), QuotaFiles: 40},
		{Name: "bob", QuotaBytes: byteSize(8 * unit), QuotaFiles: 30},
		{Name: "eve", QuotaBytes: byteSize(10 * unit), QuotaFiles: 35, WhenFull: "rotate", Expire: duration(50 * time.Millisecond)},
	}
	b := newHouseBox(t, users...)
	users[2].Home = b.path("eve")
	makeTestFiles(t, b.dir, []string{"home/l => d1", "eve/", "share/d/"})
	b.write(users...)
	b.cfg.Transfer.PartialTTL = duration(20 * time.Millisecond)
	for round := range ledgerRounds(t) {
		crash := round%2 == 1
		r := &ledgerRound{houseBox: b, crash: crash, workers: []int{12, 12, 2, 3}[round%4], unit: unit}
		r.run(t, seed+uint64(round)*1000)
		if t.Failed() {
			t.Fatalf("round %d, crash: %t", round, crash)
		}
	}
}

// ledgerRound is one run of a berth.
type ledgerRound struct {
	*houseBox
	crash   bool
	workers int
	unit    int64
	stop    chan struct{}

	mu   sync.Mutex
	left []*upload // as a crash finds them
}

func (r *ledgerRound) run(t *testing.T, seed uint64) {
	r.again()
	var js []*jail
	for _, u := range r.users {
		j, err := r.js.enter(r.house.users.jailSpec(u))
		if err != nil {
			t.Fatal(err)
		}
		js = append(js, j)
	}
	// What the last round left is made good first, with nothing else going on.
	for _, u := range r.users {
		r.sweep(u.Name)
	}
	for _, j := range js {
		r.within(t, "after the recovery", j)
		r.agrees(j)
	}
	for _, dir := range []string{"home", "eve", "share"} {
		noStaging(t, r.path(dir))
	}

	r.house.start()
	r.stop = make(chan struct{})
	var watch, work sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-r.stop:
				return
			default:
			}
			for _, j := range js {
				if r.within(t, "meanwhile", j); t.Failed() {
					return
				}
			}
		}
	})
	watch.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-r.stop:
				return
			default:
			}
			if _, _, err := r.house.scan(r.house.users.get(r.users[i%len(r.users)].Name)); err != nil {
				t.Errorf("scan: %v", err)
			}
			if i == 5 {
				r.house.save(false)
			}
		}
	})
	for i := range r.workers {
		work.Go(func() {
			w := &ledgerWorker{round: r, t: t, j: js[i%len(js)], rand: rand.New(rand.NewPCG(seed, uint64(i)))}
			for range 1200 / r.workers {
				w.step()
			}
		})
	}
	work.Wait()
	close(r.stop)
	watch.Wait()
	r.end(!r.crash) // and with it the sweeps, in the middle of whose removals nothing agrees
	for _, u := range r.left {
		u.file.Close() // and with it the lock
		u.dir.close()
	}
	for _, j := range js {
		if !r.crash {
			r.agrees(j)
		}
		r.js.leave(j)
	}
}

// within checks that a home holds no more than the larger of its users' quotas.
func (r *ledgerRound) within(t testing.TB, when string, j *jail) {
	bytes, files, _ := j.balance.usage()
	var most quota
	for _, u := range r.users {
		if u.Home == homeOf(j) {
			most = quota{max(most.bytes, int64(u.QuotaBytes)), max(most.files, u.QuotaFiles)}
		}
	}
	if bytes < 0 || files < 0 || bytes > most.bytes || files > most.files {
		t.Errorf("%s %s: %d bytes in %d files of %v", when, j.key.user, bytes, files, most)
	}
}

type ledgerWorker struct {
	round *ledgerRound
	t     *testing.T
	j     *jail
	rand  *rand.Rand
}

func (w *ledgerWorker) name() string {
	dirs := []string{"", "/d1", "/d2", "/l", "/share", "/share/d"}
	return dirs[w.rand.IntN(len(dirs))] + "/" + string(rune('a'+w.rand.IntN(4)))
}

func (w *ledgerWorker) step() {
	switch n := w.rand.IntN(100); {
	case n < 60:
		w.upload()
	case n < 70:
		w.j.remove(w.name())
	case n < 85:
		w.j.rename(w.name(), w.name(), w.rand.IntN(3) > 0)
	case n < 90:
		w.j.mkdir([]string{"/d1", "/d2", "/d1/s", "/share/d", w.name()}[w.rand.IntN(5)])
	case n < 94:
		w.j.rmdir([]string{"/d1", "/d2", "/d1/s", "/share/d", w.name()}[w.rand.IntN(5)])
	case n < 96:
		w.j.rename("/d1", "/d2", false)
	case n < 98:
		w.j.rename("/d2", "/d1", false)
	}
}

func (w *ledgerWorker) upload() {
	p := w.name()
	kind := []uploadKind{uploadStore, uploadStore, uploadStore, uploadAppend, uploadUnique}[w.rand.IntN(5)]
	offset := int64(-1)
	if kind == uploadStore && w.rand.IntN(2) == 0 {
		if e, err := w.j.stat(p); err == nil && w.rand.IntN(3) > 0 {
			offset = e.size
		} else {
			offset = w.rand.Int64N(2 * w.round.unit)
		}
	}
	u, err := w.j.create(p, kind, offset, false)
	var oe *offsetError
	if errors.As(err, &oe) && oe.have > 0 {
		u, err = w.j.create(p, kind, oe.have, false)
	}
	if err != nil {
		return
	}
	if w.rand.IntN(4) == 0 {
		if err := u.announced(w.rand.Int64N(8 * w.round.unit)); err != nil {
			endUpload(u, err)
			return
		}
	}
	for range w.rand.IntN(5) {
		if err := writeZeros(u, w.rand.Int64N(w.round.unit)); err != nil {
			endUpload(u, err)
			return
		}
	}
	switch n := w.rand.IntN(20); {
	case n < 12:
		u.commit()
	case n < 18 || !w.round.crash:
		u.interrupt()
	default:
		w.round.mu.Lock()
		w.round.left = append(w.round.left, u)
		w.round.mu.Unlock()
	}
}

func noStaging(t testing.TB, dir string) {
	t.Helper()
	walkNames(t, dir, func(p, name string) {
		if _, _, _, ok := parseStage(name); ok {
			t.Errorf("%s is left", p)
		}
	})
}
