package main

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestDirSet(t *testing.T) {
	noTemporaryFiles(t)
	for _, n := range []int{0, 1, 1000, 4_000} {
		var s dirSet
		name := func(i int) string { return fmt.Sprintf("%030d", i*2) }
		for i := range n {
			if err := s.add(name(i), treeSides(i%4), byte(i)); err != nil {
				t.Fatal(err)
			}
		}
		if n > 1000 != (s.file != nil) {
			t.Errorf("%d names: file is %v", n, s.file)
		}
		order := rand.New(rand.NewPCG(1, uint64(n))).Perm(n)
		for _, i := range order[:n/2] {
			found, sides, data, err := s.find(name(i))
			if !found || sides != treeSides(i%4) || data != byte(i) || err != nil {
				t.Fatalf("%s: %v %v %v %v", name(i), found, sides, data, err)
			}
			if again, _, _, _ := s.find(name(i)); again {
				t.Fatalf("%s is found twice", name(i))
			}
			if other, _, _, _ := s.find(fmt.Sprintf("%030d", i*2+1)); other {
				t.Fatalf("%06d is found", i*2+1)
			}
		}
		if found, _, _, _ := s.find(""); found {
			t.Error("nothing is found")
		}
		var pos dirPos
		left := 0
		for i := 0; ; i++ {
			got, sides, data, ok, err := s.next(&pos)
			if err != nil || ok != (i < n) {
				t.Fatalf("%d of %d: %v", i, n, err)
			}
			if !ok {
				break
			}
			if string(got) != name(i) || sides != treeSides(i%4) || data != byte(i) {
				t.Fatalf("%d: %s %v %v", i, got, sides, data)
			}
			if !s.isFound(i) {
				left++
			}
		}
		if left != n-n/2 {
			t.Errorf("%d are left of %d", left, n)
		}
		s.close()
	}
}

// --- walks ---

// A walkLog is a visitor that writes everything down.
type walkLog struct {
	t      *testing.T
	seen   map[string]string // name to what was on each side
	dirs   []string          // as they were left
	order  []string          // as they were visited
	bad    []string
	skip   string // not to be entered
	within map[string]bool
}

func (v *walkLog) visit(dir *treeDir, l, r *treeEntry) (treeSides, byte, error) {
	text := ""
	var sides treeSides
	name := ""
	if l != nil {
		name = strings.Clone(l.name)
		text += fmt.Sprintf("here %c %d;", l.kind, l.size)
		if l.kind == 'd' {
			sides |= treeLocal
		}
	}
	if r != nil {
		name = strings.Clone(r.name)
		text += fmt.Sprintf("there %c %d;", r.kind, r.size)
		if r.kind == 'd' {
			sides |= treeRemote
		}
	}
	path := joinName(dir.path, name)
	if _, twice := v.seen[path]; twice {
		v.t.Errorf("%q is visited twice", path)
	}
	if dir.path != "" && !v.within[dir.path] || v.within[path] {
		v.t.Errorf("%q is visited out of order", path)
	}
	if dir.depth != strings.Count(path, "/") {
		v.t.Errorf("%q is said to be %d deep", path, dir.depth)
	}
	v.seen[path] = text
	v.order = append(v.order, path)
	if path == v.skip {
		sides = 0
	}
	if sides != 0 {
		v.within[path] = true
	}
	return sides, byte(len(name)), nil
}

func (v *walkLog) leave(dir *treeDir) error {
	_, base := splitName(dir.path)
	if dir.path != "" && int(dir.data) != len(base) {
		v.t.Errorf("%q has data %d", dir.path, dir.data)
	}
	delete(v.within, dir.path)
	v.dirs = append(v.dirs, dir.path)
	return nil
}

func (v *walkLog) unreadable(_ *treeDir, path string, err error) error {
	v.bad = append(v.bad, path+" unreadable")
	return nil
}

func (v *walkLog) unruly(name string) error {
	v.bad = append(v.bad, name)
	return nil
}

// walkTrees visits a directory and a listing.
func walkTrees(t *testing.T, dir string, lines []treeEntry, skip string) (*walkLog, error) {
	t.Helper()
	v := &walkLog{t: t, seen: map[string]string{}, within: map[string]bool{}, skip: skip}
	w := treeWalk{visitor: v}
	if dir != "" {
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		w.root = root
	}
	if lines != nil {
		w.remote = readRemoteTree(func(each func(line []byte) error) error {
			for i := range lines {
				if err := each(listLine(&lines[i])); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return v, w.run()
}

// randomTree is names with their kinds, 'f' or 'd'; a file's size is its name's length.
func randomTree(rng *rand.Rand, n int) map[string]byte {
	tree := map[string]byte{}
	dirs := []string{""}
	for range n {
		name := joinName(dirs[rng.IntN(len(dirs))], []string{"a", "b", "c d", "é", "-", "a.b", "zz", "\xff"}[rng.IntN(8)]+[]string{"", "1", "!"}[rng.IntN(3)])
		if tree[name] != 0 {
			continue
		}
		tree[name] = 'f'
		if rng.IntN(3) == 0 {
			tree[name] = 'd'
			dirs = append(dirs, name)
		}
	}
	return tree
}

func entryOf(name string, kind byte) treeEntry {
	e := treeEntry{name: name, kind: kind, mode: 0o644}
	if kind == 'f' {
		e.size = int64(len(name))
	}
	return e
}

// listingOf is a tree as the server lists it: sorted, or in no order.
func listingOf(tree map[string]byte, rng *rand.Rand, sorted bool) []treeEntry {
	lines := []treeEntry{}
	below := map[string][]string{}
	for name := range tree {
		dir, base := splitName(name)
		below[dir] = append(below[dir], base)
	}
	var list func(dir string)
	list = func(dir string) {
		names := below[dir]
		slices.Sort(names)
		if !sorted {
			rng.Shuffle(len(names), func(i, k int) { names[i], names[k] = names[k], names[i] })
		}
		for _, n := range names {
			lines = append(lines, entryOf(joinName(dir, n), tree[joinName(dir, n)]))
		}
		for _, n := range names {
			if tree[joinName(dir, n)] == 'd' {
				list(joinName(dir, n))
			}
		}
	}
	list("")
	return lines
}

func makeTree(t *testing.T, dir string, tree map[string]byte) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		p := filepath.Join(dir, name)
		var err error
		if tree[name] == 'd' {
			err = os.Mkdir(p, 0o755)
		} else {
			err = os.WriteFile(p, []byte(name), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// modelWalk is what a walk has to see.
func modelWalk(here, there map[string]byte) map[string]string {
	want := map[string]string{}
	for _, side := range []struct {
		tree map[string]byte
		what string
	}{{here, "here"}, {there, "there"}} {
		for name, kind := range side.tree {
			e := entryOf(name, kind)
			want[name] += fmt.Sprintf("%s %c %d;", side.what, kind, e.size)
		}
	}
	return want
}

func TestTreeWalk(t *testing.T) {
	noTemporaryFiles(t)
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range 24 {
		here, there := randomTree(rng, round*3), randomTree(rng, round*3)
		if round%3 == 0 {
			maps.Copy(here, there) // much in common
			for again := true; again; {
				again = false
				for name := range here {
					if dir, _ := splitName(name); dir != "" && here[dir] != 'd' {
						delete(here, name)
						again = true
					}
				}
			}
		}
		dir := t.TempDir()
		makeTree(t, dir, here)
		sorted := round%2 == 0
		v, err := walkTrees(t, dir, listingOf(there, rng, sorted), "")
		if err != nil {
			t.Fatal(err)
		}
		want := modelWalk(here, there)
		for name, text := range v.seen {
			if strings.HasPrefix(text, "here d") { // sizes of directories are the file system's
				_, tail, _ := strings.Cut(text, ";")
				v.seen[name] = "here d 0;" + tail
			}
		}
		if !maps.Equal(v.seen, want) || len(v.bad) > 0 {
			t.Fatalf("round %d: got %q, %q\nwant %q", round, v.seen, v.bad, want)
		}
		dirs := 1
		for name := range want {
			if here[name] == 'd' || there[name] == 'd' {
				dirs++
			}
		}
		if len(v.dirs) != dirs || len(v.within) != 0 && len(v.within) != 1 {
			t.Fatalf("round %d: left %q, still in %v", round, v.dirs, v.within)
		}
		if sorted {
			depthFirst := slices.Clone(v.order)
			slices.SortFunc(depthFirst, func(a, b string) int { // a directory's own before those below
				da, ba := splitName(a)
				db, bb := splitName(b)
				if da == db {
					return strings.Compare(ba, bb)
				}
				return slices.Compare(dirKey(da), dirKey(db))
			})
			if !slices.Equal(v.order, depthFirst) {
				t.Fatalf("round %d: order is %q", round, v.order)
			}
		}
	}
}

func dirKey(dir string) []string {
	if dir == "" {
		return nil
	}
	return strings.Split(dir, "/")
}

// TestTreeWalkLarge has more in one directory than stays in memory.
func TestTreeWalkLarge(t *testing.T) {
	noTemporaryFiles(t)
	there := map[string]byte{}
	for i := range 8_000 {
		there[fmt.Sprintf("dir/%05d%s", i, strings.Repeat("x", 100))] = "fd"[i%2]
		if i%2 == 1 {
			there[fmt.Sprintf("dir/%05d%s/y", i, strings.Repeat("x", 100))] = 'f'
		}
	}
	there["dir"] = 'd'
	v, err := walkTrees(t, "", listingOf(there, rand.New(rand.NewPCG(5, 6)), false), "")
	if err != nil || !maps.Equal(v.seen, modelWalk(nil, there)) || len(v.bad) > 0 {
		t.Fatalf("%d names of %d, %v, %v", len(v.seen), len(there), v.bad, err)
	}
}

// TestTreeWalkUnruly has listings as no server sends them.
func TestTreeWalkUnruly(t *testing.T) {
	for _, c := range []struct{ lines, seen, bad string }{
		{"d/ d/x", "d d/x", ""},
		{"a a", "a", ""},
		{"d/x", "", "d"},
		{"a a/x b", "a", "a b"},
		{"d/ e/x f/ d/x", "d", "e f d"},
		{"../ ./ a ../x", "a", ". .. .."},
		{"a/ a/../ a/../x", "a", "a/.. a/.."},
		{"/x a", "a", "/x"},
		{"d/ d//x", "d", "d/"},
		{"d/ d/", "d", ""},
		{"d/ d/x d/y/z d/w", "d d/x", "d/y d"},
		{"a/ b/ b/x a/x", "a b b/x", "a"},
		{"b/ a/ b/x a/x", "a b b/x a/x", ""},
		{"skip/ skip/x/ skip/x/y z", "skip", "z"},
		{"skip/ z/ skip/x/ skip/x/y z/a", "skip z z/a", ""},
		{"", "", ""},
	} {
		var lines []treeEntry
		for name := range strings.FieldsSeq(c.lines) {
			name, dir := strings.CutSuffix(name, "/")
			lines = append(lines, entryOf(name, "fd"[map[bool]int{true: 1}[dir]]))
		}
		if lines == nil {
			lines = []treeEntry{}
		}
		v, err := walkTrees(t, t.TempDir(), lines, "skip")
		if got := strings.Join(v.order, " "); err != nil || got != c.seen || strings.Join(v.bad, " ") != c.bad {
			t.Errorf("%s: seen %q, bad %q, %v; want %q, %q", c.lines, got, v.bad, err, c.seen, c.bad)
		}
	}
	// An empty name.
	v, err := walkTrees(t, "", []treeEntry{entryOf("d", 'd'), entryOf("d/", 'f')}, "")
	if err != nil || len(v.seen) != 1 || !slices.Equal(v.bad, []string{"d/"}) {
		t.Errorf("%v %v %v", v.seen, v.bad, err)
	}
}

func TestTreeWalkErrors(t *testing.T) {
	broken := errors.New("the line is cut")
	v := &walkLog{t: t, seen: map[string]string{}, within: map[string]bool{}}
	w := treeWalk{visitor: v, remote: readRemoteTree(func(each func([]byte) error) error {
		each(listLine(&treeEntry{name: "a", kind: 'f'}))
		return broken
	})}
	if err := w.run(); err != broken {
		t.Errorf("got %v", err)
	}
	w = treeWalk{visitor: v, remote: readRemoteTree(func(each func([]byte) error) error { return each([]byte("junk")) })}
	if err := w.run(); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("got %v", err)
	}
	// A visitor that has enough of a listing without end.
	stopped := make(chan error)
	w = treeWalk{visitor: stopVisitor{}, remote: readRemoteTree(func(each func([]byte) error) error {
		var err error
		for i := 0; err == nil; i++ {
			dir := fmt.Sprintf("d%06d", i/2)
			err = each(listLine(&treeEntry{name: joinName(dir, "x")[:len(dir)+2*(i%2)], kind: 'd'}))
		}
		stopped <- err
		return err
	})}
	done := make(chan error)
	go func() { done <- w.run() }()
	if err := <-stopped; err != errTreeStopped {
		t.Errorf("the listing ended with %v", err)
	}
	if err := <-done; err != errStopVisitor {
		t.Errorf("got %v", err)
	}
	if os.Getuid() == 0 {
		return
	}
	dir := t.TempDir()
	makeTree(t, dir, map[string]byte{"shut": 'd', "shut/x": 'f', "z": 'f'})
	if err := os.Chmod(filepath.Join(dir, "shut"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(filepath.Join(dir, "shut"), 0o755) })
	v, err := walkTrees(t, dir, []treeEntry{entryOf("shut", 'd'), entryOf("y", 'f'), entryOf("shut/x", 'f'), entryOf("shut/d", 'd'), entryOf("shut/d/e", 'f')}, "")
	if err != nil || !slices.Equal(v.bad, []string{"shut unreadable"}) || !slices.Equal(v.order, []string{"shut", "y", "z"}) {
		t.Errorf("%v %v %v", v.order, v.bad, err)
	}
}

var errStopVisitor = errors.New("enough")

type stopVisitor struct{}

func (stopVisitor) visit(*treeDir, *treeEntry, *treeEntry) (treeSides, byte, error) {
	return treeRemote, 0, nil
}
func (stopVisitor) leave(*treeDir) error                     { return nil }
func (stopVisitor) unreadable(*treeDir, string, error) error { return nil }
func (stopVisitor) unruly(string) error                      { return errStopVisitor }
