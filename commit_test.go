package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// TestGroupCommit has many durable uploads at once, into several directories: each is
// there with its own content, nobody waits for ever, and no descriptor or group is left.
func TestGroupCommit(t *testing.T) {
	noLeaks(t)
	home := t.TempDir()
	j := enterTestJail(t, haveOpenat2(), home, nil)
	for d := range 3 {
		if err := os.Mkdir(filepath.Join(home, fmt.Sprint(d)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	content := func(s, i int) []byte { return bytes.Repeat([]byte(fmt.Sprintf("%d-%d.", s, i)), 100*(s+1)) }
	var wg sync.WaitGroup
	for s := range 16 {
		wg.Go(func() {
			for i := range 12 {
				name := fmt.Sprintf("/%d/f%d-%d", s%3, s, i%4) // every name three times
				u, err := j.create(name, uploadStore, 0, true)
				if err != nil {
					t.Errorf("create: %v", err)
					return
				}
				if _, err := u.Write(content(s, i)); err != nil {
					t.Errorf("write: %v", err)
				}
				if s == 15 && i%2 == 0 {
					u.interrupt() // who joined and never asks for a flush holds up nobody
					continue
				}
				if err := u.commit(); err != nil {
					t.Errorf("commit: %v", err)
				}
			}
		})
	}
	wg.Wait()
	for s := range 15 {
		for i := 8; i < 12; i++ {
			got, err := os.ReadFile(filepath.Join(home, fmt.Sprint(s%3), fmt.Sprintf("f%d-%d", s, i%4)))
			if err != nil || !bytes.Equal(got, content(s, i)) {
				t.Errorf("session %d, upload %d: %d bytes, %v", s, i, len(got), err)
			}
		}
	}
	if n := len(j.set.syncs.groups); n != 0 {
		t.Errorf("%d groups are left", n)
	}
}

// TestGroupCommitTellsEachHisOwnError: after a flush of all has failed, each hears what
// became of his own file, and the group asks for no flush of all any more.
func TestGroupCommitTellsEachHisOwnError(t *testing.T) {
	dir := t.TempDir()
	open := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	good := open("good")
	pipe, end, err := os.Pipe() // what cannot be flushed
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer end.Close()
	g := &syncGroup{fd: 1 << 20, full: make(chan struct{}, 1)} // syncfs says EBADF
	batch := []*syncWait{{fd: int(good.Fd())}, {fd: int(pipe.Fd())}, {fd: int(good.Fd())}}
	g.flush(batch)
	if batch[0].err != nil || batch[2].err != nil {
		t.Errorf("the good files: %v, %v", batch[0].err, batch[2].err)
	}
	if batch[1].err == nil {
		t.Error("the bad one is told that it is safe")
	}
	if !g.failed {
		t.Error("the group would ask for a flush of all again")
	}
}
