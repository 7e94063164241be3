package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A syncEnv is a server, and a directory here.
type syncEnv struct {
	t    *testing.T
	box  *ftpBox
	spec *hostSpec
	ctx  context.Context
	here string // directories of which the tests make trees
	user string
	jobs int
	held *remote

	mu  sync.Mutex
	all []*remote
}

func newSyncEnv(t *testing.T) *syncEnv {
	noTemporaryFiles(t)
	b := newFTPBox(t, realListen, "")
	addr := b.serveReal(t)[0].(*net.TCPAddr)
	ctx, cancel := context.WithCancel(t.Context())
	e := &syncEnv{t: t, box: b, ctx: ctx, here: t.TempDir(), user: "ann", jobs: 1, spec: &hostSpec{name: "box", network: "tcp", address: addr.String(), user: "ann"}}
	t.Cleanup(func() {
		for _, c := range e.all {
			c.close()
		}
		cancel()
	})
	return e
}

func (e *syncEnv) connect() (*remote, error) {
	c, err := dialRemote(e.ctx, e.spec, defaultSilence, func(c *remote) error {
		password := "secret"
		_, err := c.do(remoteRequest{Do: "login", User: e.user, Password: &password})
		return err
	})
	if err == nil {
		e.mu.Lock()
		e.all = append(e.all, c)
		e.mu.Unlock()
	}
	return c, err
}

func (e *syncEnv) main() (*remote, error) {
	if e.held != nil && e.held.broken() == nil {
		return e.held, nil
	}
	c, err := e.connect()
	e.held = c
	return c, err
}

// A syncDone is how a sync went.
type syncDone struct {
	lines  []string // without times and notes, which a dry run cannot know
	stderr string
	syncSummary
	err error
}

var timeOfLine = regexp.MustCompile(`( [0-9.]+s)?( \(.*\))?$`)

// sync runs one, with src and dst as the command line has them.
func (e *syncEnv) sync(o syncOptions, src, dst string, prepare ...func(*syncRun)) *syncDone {
	e.t.Helper()
	var stdout, stderr bytes.Buffer
	s := &syncRun{o: o, ctx: e.ctx, main: e.main, other: e.connect, engine: engineOptions{verb: "sync", jobs: e.jobs, retry: time.Minute, pause: time.Millisecond}}
	if o.maxDelete == 0 {
		s.o.maxDelete = -1
	}
	s.prog = newProgress(progressOptions{stdout: &stdout, stderr: &stderr, verb: "sync", jobs: 1})
	d := &syncDone{}
	if d.err = s.places(src, dst, dst); d.err == nil {
		for _, f := range prepare {
			f(s)
		}
		var m *syncSummary
		if m, d.err = s.sync(); m != nil {
			d.syncSummary = *m
		}
		if s.root != nil {
			s.root.Close()
		}
	}
	for line := range strings.Lines(stdout.String()) {
		d.lines = append(d.lines, timeOfLine.ReplaceAllString(strings.TrimSuffix(line, "\n"), ""))
	}
	d.stderr = stderr.String()
	return d
}

// fine is sync, which must do all there is to do.
func (e *syncEnv) fine(o syncOptions, src, dst string) *syncDone {
	e.t.Helper()
	d := e.sync(o, src, dst)
	if d.err != nil || d.Failed != 0 || d.stderr != "" {
		e.t.Fatalf("%s to %s: %v, %+v\n%s", src, dst, d.err, d.syncSummary, d.stderr)
	}
	return d
}

// tree makes files: a name with "/" behind it is a directory, "name=text" a file, and
// "name->target" a link.
func (e *syncEnv) tree(dir string, names ...string) {
	e.t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		e.t.Fatal(err)
	}
	for _, name := range names {
		p := filepath.Join(dir, name)
		var err error
		if link, target, ok := strings.Cut(name, "->"); ok {
			err = os.Symlink(target, filepath.Join(dir, link))
		} else if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(p, 0o755)
		} else {
			name, text, _ := strings.Cut(name, "=")
			if err = os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err == nil {
				err = os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)
			}
		}
		if err != nil {
			e.t.Fatal(err)
		}
	}
}

// treeText is what is in a directory: kinds, contents, times of files, and modes if
// asked for.
func treeText(t *testing.T, dir string, modes bool) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		fmt.Fprintf(&b, "%q", rel)
		if modes {
			fmt.Fprintf(&b, " %v", info.Mode())
		}
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %d %s %s\n", len(data), hexSum(data)[:16], info.ModTime().UTC().Format(time.RFC3339Nano))
		case info.IsDir():
			b.WriteString("/\n")
		default:
			fmt.Fprintf(&b, " %v\n", info.Mode().Type())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// --- trees by chance ---

var syncNames = []string{"a", "b", "B", "c d", "é", "日本", "-n", "x.tmp", "a.b", "~", "100%", "it's", "\xff\xfe", "tab\there", "*", "[x]"}

// scramble makes a tree, or changes one: what it finds may become anything.
func scramble(t *testing.T, rng *rand.Rand, dir string, depth int) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for range rng.IntN(6) {
		name := syncNames[rng.IntN(len(syncNames))]
		if strings.HasPrefix(name, "tab") {
			name = "tab here"
		}
		p := filepath.Join(dir, name)
		info, err := os.Lstat(p)
		if err == nil && (!info.IsDir() || rng.IntN(3) == 0) {
			must(os.RemoveAll(p))
			err = fs.ErrNotExist
		}
		switch rng.IntN(4) {
		case 0, 1:
			if err == nil {
				must(os.RemoveAll(p))
			}
			size := rng.IntN(50)
			if rng.IntN(4) == 0 {
				size = moveLeast + rng.IntN(3)
			}
			must(os.WriteFile(p, bytes.Repeat([]byte{byte('a' + rng.IntN(3))}, size), fs.FileMode(0o600|rng.IntN(0o100))))
			must(os.Chtimes(p, time.Time{}, time.Unix(1_700_000_000+int64(rng.IntN(3)), int64(rng.IntN(2))*123_456_789)))
		case 2:
			if err != nil {
				must(os.Mkdir(p, 0o755))
			}
			if depth < 5 {
				scramble(t, rng, p, depth+1)
			}
		default: // gone
			must(os.RemoveAll(p))
		}
	}
}

// TestSyncTrees makes trees like each other, in both directions, until nothing is left
// to do. What a dry run says is what is done.
func TestSyncTrees(t *testing.T) {
	e := newSyncEnv(t)
	e.tree(e.here, "outside/keep=1")
	e.tree(e.box.home, "outside/keep=2")
	for round := range 14 {
		rng := rand.New(rand.NewPCG(7, uint64(round)))
		up := round%2 == 0
		here, there := filepath.Join(e.here, "tree"), filepath.Join(e.box.home, "tree")
		if round%7 == 0 {
			os.RemoveAll(there)
			os.RemoveAll(here)
			e.tree(here)
			e.tree(there)
		}
		scramble(t, rng, here, 0)
		scramble(t, rng, there, 0)
		o := syncOptions{upload: up, delete: true, checksum: round%5 == 4, preserve: round%3 == 0}
		src, dst, from, to := here+"/", "tree", here, there
		if !up {
			src, dst, from, to = "tree/", here, there, here
		}
		want := treeText(t, from, o.preserve)
		before := treeText(t, e.here, true) + treeText(t, e.box.home, true)
		dry := o
		dry.dryRun = true
		said := e.fine(dry, src, dst)
		if after := treeText(t, e.here, true) + treeText(t, e.box.home, true); after != before {
			t.Fatalf("round %d: a dry run changed\n%s\nto\n%s", round, before, after)
		}
		e.jobs = 1 + 2*(round%2)
		done := e.fine(o, src, dst)
		if e.jobs > 1 { // files end in any order
			slices.Sort(said.lines)
			slices.Sort(done.lines)
		}
		if !slices.Equal(said.lines, done.lines) {
			t.Fatalf("round %d: said %q\ndid %q", round, said.lines, done.lines)
		}
		if said.Files != done.Files || said.Moved != done.Moved || said.Deleted != done.Deleted || said.Unchanged != done.Unchanged || said.Bytes != done.Bytes {
			t.Fatalf("round %d: said %+v\ndid %+v", round, said.syncSummary, done.syncSummary)
		}
		if got := treeText(t, to, o.preserve); got != want {
			t.Fatalf("round %d: upload %v: got\n%s\nwant\n%s\n%q", round, up, got, want, done.lines)
		}
		again := e.fine(o, src, dst)
		if len(again.lines) != 0 {
			t.Fatalf("round %d: the second run does %q", round, again.lines)
		}
		for _, dir := range []string{e.here, e.box.home} {
			if names, _ := os.ReadDir(filepath.Join(dir, "outside")); len(names) != 1 {
				t.Fatalf("round %d: outside is %v", round, names)
			}
		}
	}
}

// TestSyncUpdates leaves alone what is only at the destination, without --delete.
func TestSyncUpdates(t *testing.T) {
	e := newSyncEnv(t)
	here := filepath.Join(e.here, "src")
	e.tree(here, "a=1", "dir/b=2", "empty/", "link->a")
	e.tree(e.box.home, "dst/c=3", "dst/dir/d=4")
	d := e.sync(syncOptions{upload: true}, here+"/", "dst")
	if want := []string{"mkdir empty/", "put a 1 bytes", "put dir/b 1 bytes"}; !slices.Equal(d.lines, want) || d.Failed != 0 || d.Skipped != 1 {
		t.Errorf("%q %+v", d.lines, d.syncSummary)
	}
	if want := "berth sync: link: left out: a link\n"; d.stderr != want {
		t.Errorf("%q", d.stderr)
	}
	if got := d.line(true); got != "sent 2 files, 2 B; 0 moved, 0 deleted, 0 unchanged, 1 left out; 0 failed" {
		t.Error(got)
	}
	for _, name := range []string{"dst/c", "dst/dir/d", "dst/dir/b", "dst/a"} {
		e.box.content(t, name)
	}
	// With --delete, and names that are excluded.
	e.tree(e.box.home, "dst/x.tmp=5", "dst/old/deep/x.tmp=6", "dst/old/y=7", "dst/gone/z=8")
	rule, _ := parseTreeRule(false, "*.tmp")
	d = e.fine(syncOptions{delete: true, rules: treeRules{rule}}, "dst/", filepath.Join(e.here, "copy"))
	if d.Files != 6 {
		t.Errorf("%q", d.lines)
	}
	d = e.sync(syncOptions{upload: true, delete: true, rules: treeRules{rule}}, here, "")
	if want := []string{"mkdir src/", "mkdir src/dir/", "mkdir src/empty/", "put src/a 1 bytes", "put src/dir/b 1 bytes"}; !slices.Equal(d.lines, want) {
		t.Errorf("%q", d.lines)
	}
	d = e.sync(syncOptions{upload: true, delete: true, rules: treeRules{rule}}, here+"/", "dst")
	if want := []string{"delete c", "delete dir/d", "delete gone/z", "delete gone/", "delete old/y"}; !slices.Equal(d.lines, want) || d.Failed != 0 {
		t.Errorf("%q %s", d.lines, d.stderr)
	}
	e.box.content(t, "dst/old/deep/x.tmp")
}

func TestSyncMoves(t *testing.T) {
	e := newSyncEnv(t)
	here := filepath.Join(e.here, "src")
	big := strings.Repeat("big", moveLeast)
	e.tree(here, "one="+big+"1", "two="+big+"2", "small=s", "three="+big+"3")
	e.fine(syncOptions{upload: true}, here+"/", "dst")
	// one goes elsewhere, two is copied and goes, three becomes as long as one.
	for _, err := range []error{os.MkdirAll(filepath.Join(here, "sub"), 0o755), os.Rename(filepath.Join(here, "one"), filepath.Join(here, "sub", "one")),
		os.Rename(filepath.Join(here, "two"), filepath.Join(here, "deux")), os.Rename(filepath.Join(here, "small"), filepath.Join(here, "petit"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	e.tree(here, "zwei="+big+"2", "three="+big+"4")
	o := syncOptions{upload: true, delete: true, dryRun: true}
	want := []string{"mkdir sub/", "move two -> deux", "move one -> sub/one",
		"put petit 1 bytes", fmt.Sprintf("put three %d bytes", len(big)+1), fmt.Sprintf("put zwei %d bytes", len(big)+1), "delete small"}
	if d := e.fine(o, here+"/", "dst"); !slices.Equal(d.lines, want) {
		t.Errorf("%q", d.lines)
	}
	o.dryRun = false
	if d := e.fine(o, here+"/", "dst"); !slices.Equal(d.lines, want) || d.Moved != 2 || d.Deleted != 1 {
		t.Errorf("%q %+v", d.lines, d.syncSummary)
	}
	if d := e.fine(o, here+"/", "dst"); len(d.lines) != 0 {
		t.Errorf("%q", d.lines)
	}
	// The other way round.
	copied := filepath.Join(e.here, "copy")
	e.fine(syncOptions{}, "dst/", copied)
	if err := os.Rename(filepath.Join(e.box.home, "dst/zwei"), filepath.Join(e.box.home, "dst/deux.old")); err != nil {
		t.Fatal(err)
	}
	o.upload = false
	if d := e.fine(o, "dst/", copied); !slices.Equal(d.lines, []string{"move zwei -> deux.old"}) {
		t.Errorf("%q", d.lines)
	}
	if got, want := treeText(t, copied, false), treeText(t, filepath.Join(e.box.home, "dst"), false); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	// A move that is refused becomes a transfer.
	e.box.user(t, "bob", "permissions = [\"read\", \"write\", \"delete\", \"list\", \"mkdir\"]\n")
	if err := e.box.srv.reload(); err != nil {
		t.Fatal(err)
	}
	e.user, e.held = "bob", nil
	if err := os.Rename(filepath.Join(here, "three"), filepath.Join(here, "quatre")); err != nil {
		t.Fatal(err)
	}
	o.upload = true
	if d := e.fine(o, here+"/", "dst"); !slices.Equal(d.lines, []string{fmt.Sprintf("put quatre %d bytes", len(big)+1), fmt.Sprintf("put zwei %d bytes", len(big)+1), "delete deux.old", "delete three"}) {
		t.Errorf("%q", d.lines)
	}
}

func TestSyncMaxDelete(t *testing.T) {
	e := newSyncEnv(t)
	here := filepath.Join(e.here, "src")
	e.tree(here, "a=1")
	e.tree(e.box.home, "dst/b=1", "dst/dir/c=1")
	o := syncOptions{upload: true, delete: true, maxDelete: 2}
	for _, o.dryRun = range []bool{true, false} {
		d := e.sync(o, here+"/", "dst")
		if !slices.Equal(d.lines, []string{"put a 1 bytes"}) || d.Failed != 1 || d.err != nil {
			t.Errorf("%q %+v", d.lines, d.syncSummary)
		}
		if want := "berth sync: nothing is deleted: it would be 3 files and directories, and --max-delete allows 2\n"; d.stderr != want {
			t.Error(d.stderr)
		}
	}
	o.maxDelete = 3
	if d := e.fine(o, here+"/", "dst"); !slices.Equal(d.lines, []string{"delete b", "delete dir/c", "delete dir/"}) {
		t.Errorf("%q", d.lines)
	}
}

func TestSyncConflicts(t *testing.T) {
	e := newSyncEnv(t)
	here := filepath.Join(e.here, "src")
	e.tree(here, "file/x=1", "dir=2", "link=3", "plain=4")
	e.tree(e.box.home, "dst/file=f", "dst/dir/deep/y=d", "dst/link->plain", "dst/plain=4")
	o := syncOptions{upload: true}
	d := e.sync(o, here+"/", "dst")
	want := "berth sync: dir: it is a file here and a directory on the box; --delete replaces it\n" +
		"berth sync: file: it is a directory here and a file on the box; --delete replaces it\n" +
		"berth sync: link: it is a file here and a link on the box; --delete replaces it\n"
	if d.stderr != want || d.Failed != 3 || len(d.lines) != 1 {
		t.Errorf("%q\n%s%+v", d.lines, d.stderr, d.syncSummary)
	}
	o.delete = true
	lines := []string{"delete file", "delete link", "delete dir/deep/y", "delete dir/deep/", "delete dir/", "mkdir file/", "put dir 1 bytes", "put link 1 bytes", "put file/x 1 bytes"}
	if d := e.fine(o, here+"/", "dst"); !slices.Equal(d.lines, lines) {
		t.Errorf("%q", d.lines)
	}
	if got, want := treeText(t, filepath.Join(e.box.home, "dst"), false), treeText(t, here, false); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	// The same here, where a link leads out.
	out := filepath.Join(e.here, "out")
	e.tree(out, "x=untouched")
	copied := filepath.Join(e.here, "copy")
	e.tree(copied, "file->"+out, "dir/deep/y=d")
	o.upload = false
	e.fine(o, "dst/", copied)
	if got, want := treeText(t, copied, false), treeText(t, here, false); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got, _ := os.ReadFile(filepath.Join(out, "x")); string(got) != "untouched" {
		t.Errorf("outside is %q", got)
	}
}

func TestSyncChecksum(t *testing.T) {
	e := newSyncEnv(t)
	here := filepath.Join(e.here, "src")
	e.tree(here, "same=1", "touched=2", "other=3")
	e.fine(syncOptions{upload: true}, here+"/", "dst")
	info, err := os.Stat(filepath.Join(here, "other"))
	if err != nil {
		t.Fatal(err)
	}
	e.tree(here, "other=x") // with its old time
	later := info.ModTime().Add(time.Hour)
	for _, err := range []error{os.Chtimes(filepath.Join(here, "other"), time.Time{}, info.ModTime()), os.Chtimes(filepath.Join(here, "touched"), time.Time{}, later)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	o := syncOptions{upload: true, checksum: true}
	if d := e.fine(o, here+"/", "dst"); !slices.Equal(d.lines, []string{"put other 1 bytes", "touch touched"}) || d.Unchanged != 2 {
		t.Errorf("%q %+v", d.lines, d.syncSummary)
	}
	if d := e.fine(o, here+"/", "dst"); len(d.lines) != 0 || d.Unchanged != 3 {
		t.Errorf("%q %+v", d.lines, d.syncSummary)
	}
}

// TestSyncLost loses the connection between plan and execution, and in it.
func TestSyncLost(t *testing.T) {
	e := newSyncEnv(t)
	here := filepath.Join(e.here, "src")
	var names []string
	for i := range 300 {
		names = append(names, fmt.Sprintf("d%03d/", i))
	}
	e.tree(here, append(names, "f=1")...)
	e.tree(e.box.home, "dst/old/x=1")
	calls := 0
	d := e.sync(syncOptions{upload: true, delete: true}, here+"/", "dst", func(s *syncRun) {
		main := s.main
		s.main = func() (*remote, error) {
			c, err := main()
			if calls++; calls == 2 && err == nil {
				c.conn.Close()
			}
			return c, err
		}
		s.prog.stdout = cutAfter{s, s.prog.stdout, "mkdir d100/"}
		s.prog.lines = s.prog.stdout
	})
	if d.err != nil || d.Failed != 0 || !strings.Contains(d.stderr, "trying again") {
		t.Fatalf("%v %+v\n%s", d.err, d.syncSummary, d.stderr)
	}
	if got, want := treeText(t, filepath.Join(e.box.home, "dst"), false), treeText(t, here, false); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// cutAfter closes the connection once a line has been written.
type cutAfter struct {
	s    *syncRun
	w    interface{ Write([]byte) (int, error) }
	line string
}

func (c cutAfter) Write(p []byte) (int, error) {
	if strings.HasPrefix(string(p), c.line) {
		c.s.c.conn.Close()
	}
	return c.w.Write(p)
}

// --- plans of listings that no server sends ---

// planOf is the plan of a listing that is fetched to dir.
func planOf(t *testing.T, o syncOptions, dir string, skipped int64, lines ...treeEntry) *syncPlan {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	p, err := makePlan(o, root, func(each func([]byte) error) (*remoteAnswer, error) {
		for i := range lines {
			if err := each(listLine(&lines[i])); err != nil {
				return nil, err
			}
		}
		return &remoteAnswer{Skipped: skipped}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	return p
}

// steps is a spool as text.
func steps(t *testing.T, s *spool) string {
	t.Helper()
	var all []string
	if err := s.eachStep(func(_ int, a *syncStep) error { all = append(all, a.name); return nil }); err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, " ")
}

func TestSyncHostileNames(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mine"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	bad := []string{"..", ".", "a\x1b[2J", ".berth-x", "a\nb", strings.Repeat("x", 256)}
	lines := []treeEntry{entryOf("good", 'f'), entryOf("/etc", 'f'), entryOf("d", 'd'), entryOf("link", 'l'), entryOf("pipe", 'o')}
	for _, name := range bad {
		lines = append(lines, entryOf(name, 'd'))
	}
	lines = append(lines, entryOf("d/ok", 'f'), entryOf("d/..", 'd'), entryOf("../up", 'f'), entryOf("d/../up", 'f'), entryOf("link/x", 'f'))
	p := planOf(t, syncOptions{delete: true}, dir, 0, lines...)
	if got := steps(t, &p.files); got != "good d/ok" {
		t.Errorf("files: %q", got)
	}
	if got := steps(t, &p.dirs); got != "d" {
		t.Errorf("directories: %q", got)
	}
	if p.failed < int64(len(bad)) || !p.blind || p.skipped != 2 {
		t.Errorf("%d failed, blind %v, %d skipped", p.failed, p.blind, p.skipped)
	}
}

// FuzzSyncListing fetches a listing of any lines: nothing of the plan leads elsewhere.
func FuzzSyncListing(f *testing.F) {
	for _, names := range []string{"a d/ d/x", "../ ../x", "/etc", "d/ d/../ d/../x", "d/ d/ d/x d/x e/x", "a/ a/b/ a/b/c a/b/c/d", ".berth-x/ .berth-x/y"} {
		var lines []byte
		for name := range strings.FieldsSeq(names) {
			name, dir := strings.CutSuffix(name, "/")
			e := entryOf(name, "fd"[map[bool]int{true: 1}[dir]])
			lines = append(append(lines, listLine(&e)...), '\n')
		}
		f.Add(lines)
	}
	here := f.TempDir()
	for _, name := range []string{"d", "d/mine"} {
		if err := os.Mkdir(filepath.Join(here, name), 0o755); err != nil {
			f.Fatal(err)
		}
	}
	root, err := os.OpenRoot(here)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { root.Close() })
	f.Fuzz(func(t *testing.T, listing []byte) {
		p, err := makePlan(syncOptions{delete: true, preserve: true}, root, func(each func([]byte) error) (*remoteAnswer, error) {
			for line := range bytes.Lines(listing) {
				if err := each(bytes.TrimSuffix(line, []byte{'\n'})); err != nil {
					return nil, err
				}
			}
			return &remoteAnswer{}, nil
		})
		if err != nil {
			return
		}
		defer p.close()
		seen := map[string]bool{}
		for _, list := range []*spool{&p.files, &p.dirs} {
			err := list.eachStep(func(_ int, a *syncStep) error {
				if why := badRemoteName(a.name); why != "" || seen[a.name] {
					return fmt.Errorf("%q: %s, seen %v", a.name, why, seen[a.name])
				}
				if dir, _ := splitName(a.name); a.kind == stepMkdir && dir != "" && dir != "d" && !seen[dir] {
					return fmt.Errorf("%q comes before %q", a.name, dir)
				}
				seen[a.name] = true
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestSyncBlind deletes nothing if the box has not told of everything.
func TestSyncBlind(t *testing.T) {
	e := newSyncEnv(t)
	dir := filepath.Join(e.here, "dst")
	e.tree(dir, "a=1", "b=2")
	for _, skipped := range []int64{0, 3} {
		var stdout, stderr bytes.Buffer
		s := &syncRun{ctx: t.Context(), o: syncOptions{delete: true, maxDelete: -1, dryRun: true}, local: dir, topIs: "dst",
			prog: newProgress(progressOptions{stdout: &stdout, stderr: &stderr, verb: "sync"}), engine: engineOptions{verb: "sync"}}
		p := planOf(t, s.o, dir, skipped, treeEntry{name: "a", kind: 'f', size: 1})
		if err := s.execute(p); err != nil {
			t.Fatal(err)
		}
		deleted := strings.Contains(stdout.String(), "delete b\n")
		if deleted != (skipped == 0) || strings.Contains(stderr.String(), "nothing is deleted, as part") == deleted || s.failed.Load() != min(skipped, 1) {
			t.Errorf("%d skipped: %q %q", skipped, &stdout, &stderr)
		}
	}
}

// TestSyncLocalNames leaves out what no box can be told.
func TestSyncLocalNames(t *testing.T) {
	e := newSyncEnv(t)
	here := filepath.Join(e.here, "src")
	e.tree(here, "line\nend=1", "cr\rdir/x=1", ".berth-get-x=half", ".berth-mine=1", "tab\t=2")
	deep := here + strings.Repeat("/d", maxDepth+1)
	e.tree(deep, "f=1")
	o := syncOptions{upload: true, delete: true}
	for range 2 {
		d := e.sync(o, here+"/", "dst")
		if d.err != nil || d.Failed != 3 || d.Skipped != 1 {
			t.Fatalf("%v %+v\n%s", d.err, d.syncSummary, d.stderr)
		}
	}
	e.box.content(t, "dst/tab\t")
	e.box.missing(t, "dst/line\nend")
}

func TestSyncPlaces(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, d := range []string{"a", "a/b", "dst"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile("file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		up                         bool
		src, dst, local, top, base string
		err                        string
	}{
		{true, "a", "dst", "a", "dst/a", "a", ""},
		{true, "a/", "dst", "a/", "dst", "", ""},
		{true, "a/b", "", "a/b", "b", "b", ""},
		{true, ".", "dst", ".", "dst", "", ""},
		{true, "a/..", "dst", "a/..", "dst", "", ""},
		{true, "a", "/", "a", "/a", "a", ""},
		{true, "none", "dst", "", "", "", "none: no such file or directory here"},
		{true, "file", "dst", "", "", "", "file is no directory; sync makes one directory like another, put sends files"},
		{false, "x/y", "new/dst", "new/dst/y", "x/y", "y", ""},
		{false, "x/y/", "dst", "dst", "x/y/", "", ""},
		{false, "", "dst", "dst", "", "", ""},
		{false, "/", "new/dst", "new/dst", "/", "", ""},
		{false, "x/", "file", "", "", "", "file is no directory, so there is no place for what is on the box"},
	} {
		s := &syncRun{o: syncOptions{upload: c.up}}
		err := s.places(c.src, c.dst, c.dst)
		if c.err != "" {
			if err == nil || err.Error() != c.err {
				t.Errorf("%+v: %v", c, err)
			}
			continue
		}
		if err != nil || s.local != c.local || s.top != c.top || s.base != c.base || s.fresh != (c.dst == "new/dst") {
			t.Errorf("%+v: %v, %q %q %q", c, err, s.local, s.top, s.base)
		}
		if s.root != nil {
			s.root.Close()
		}
	}
}

func TestSyncRefusals(t *testing.T) {
	e := newSyncEnv(t)
	e.tree(e.box.home, "file=1")
	for _, c := range []struct {
		o        syncOptions
		src, dst string
		want     string
	}{
		{syncOptions{}, "none/", e.here, "none/ on the box: *"},
		{syncOptions{}, "file", e.here, "file on the box is no directory; *"},
		{syncOptions{upload: true}, e.here + "/", "file", "file on the box is no directory; *"},
	} {
		d := e.sync(c.o, c.src, c.dst)
		if d.err == nil || !wildcard(c.want, d.err.Error()) || exitCode(d.err) != exitFailed {
			t.Errorf("%s %s: %v", c.src, c.dst, d.err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d := e.sync(syncOptions{}, "", e.here, func(s *syncRun) { s.ctx = ctx })
	if !errors.Is(d.err, errInterrupted) {
		t.Errorf("got %v", d.err)
	}
}

func TestSameTime(t *testing.T) {
	const s, ms, us = int64(time.Second), int64(time.Millisecond), int64(time.Microsecond)
	at := int64(1_795_262_400) * s
	for _, c := range []struct {
		a, b   int64
		window time.Duration
		want   bool
	}{
		{at, at, 0, true},
		{at, at + s, 0, false},
		{at, at + 999*ms, 0, true},               // one side keeps seconds
		{at + 1, at + 999*ms, 0, false},          // neither does
		{at + 120*ms, at + 123*ms + 1, 0, true},  // hundredths
		{at + 123*ms, at + 123*ms + us, 0, true}, // milliseconds
		{at + 123*ms + us, at + 123*ms + us + 999, 0, true},
		{at + 123*ms + us, at + 123*ms + 2*us + 1, 0, false},
		{at, at - 1, 0, false},
		{at, at + 2*s, 2 * time.Second, true},
		{at, at - 2*s, 2 * time.Second, true},
		{at, at + 2*s + 1, 2 * time.Second, false},
		{-5 * s, 0, 0, true},
	} {
		p := syncPlan{o: syncOptions{window: c.window}}
		if p.sameTime(c.a, c.b) != c.want || p.sameTime(c.b, c.a) != c.want {
			t.Errorf("%d and %d, window %v: want %v", c.a-at, c.b-at, c.window, c.want)
		}
	}
}
