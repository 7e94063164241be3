package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
)

// noTemporaryFiles has the test fail if a name is left behind.
func noTemporaryFiles(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
			t.Errorf("left behind: %v %v", names, err)
		}
	})
}

func TestSpool(t *testing.T) {
	noTemporaryFiles(t)
	for _, n := range []int{0, 1, 100, 30_000} {
		var s spool
		record := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, i*7919%300*(1+i%97/96*100)) }
		for i := range n {
			if err := s.add(record(i)); err != nil {
				t.Fatal(err)
			}
		}
		if s.count != n || n > 100 != (s.file != nil) {
			t.Fatalf("%d records, file %v; want %d", s.count, s.file, n)
		}
		for range 2 {
			i := 0
			err := s.each(func(r []byte) error {
				if !bytes.Equal(r, record(i)) {
					return fmt.Errorf("record %d is %d bytes of %.10q", i, len(r), r)
				}
				i++
				return nil
			})
			if err != nil || i != n {
				t.Fatalf("%d of %d: %v", i, n, err)
			}
		}
		s.close()
	}
}

func TestSpoolNoRoom(t *testing.T) {
	t.Setenv("TMPDIR", "/nowhere")
	var s spool
	var err error
	for err == nil && s.count < 1000 {
		err = s.add(make([]byte, 1000))
	}
	if err == nil || !strings.Contains(err.Error(), "TMPDIR names a directory with room") {
		t.Fatalf("got %v", err)
	}
}

// TestSorter sorts records in memory, in runs, and in runs of runs.
func TestSorter(t *testing.T) {
	noTemporaryFiles(t)
	rng := rand.New(rand.NewPCG(1, 2))
	s := sorter{memory: 2 << 10}
	for _, n := range []int{0, 1, 2, 50, 3000, 12_000} {
		for _, order := range []string{"random", "sorted", "backwards"} {
			keys := make([]string, n)
			for i := range keys {
				keys[i] = fmt.Sprintf("%0*d", 1+i%9, rng.IntN(n*2))
			}
			if n > 100 {
				keys[n/2] = strings.Repeat("k", 60_000) // larger than its share of memory
			}
			switch order {
			case "sorted":
				slices.Sort(keys)
			case "backwards":
				slices.Sort(keys)
				slices.Reverse(keys)
			}
			for i, k := range keys {
				if err := s.add([]byte(k), binary.BigEndian.AppendUint32(nil, uint32(i))); err != nil {
					t.Fatal(err)
				}
			}
			if order == "sorted" && n > 0 && !s.ordered || order == "random" && n > 50 && s.ordered || s.empty() != (n == 0) {
				t.Fatalf("%d %s: ordered is %v, empty %v", n, order, s.ordered, s.empty())
			}
			if n == 12_000 && len(s.levels) < 2 {
				t.Fatalf("%d levels", len(s.levels))
			}
			if err := s.sort(); err != nil {
				t.Fatal(err)
			}
			at := make([]int, n)
			for i := range at {
				at[i] = i
			}
			slices.SortStableFunc(at, func(a, b int) int { return strings.Compare(keys[a], keys[b]) })
			for i := 0; ; i++ {
				key, rest, ok, err := s.next()
				if err != nil {
					t.Fatal(err)
				}
				if !ok {
					if i != n {
						t.Fatalf("%d of %d", i, n)
					}
					break
				}
				if i >= n || string(key) != keys[at[i]] || int(binary.BigEndian.Uint32(rest)) != at[i] {
					t.Fatalf("%d %s: record %d is %.20q %x", n, order, i, key, rest)
				}
			}
			s.reset()
		}
	}
	s.close()
	if err := s.add(make([]byte, maxRecord+1), nil); err == nil {
		t.Error("a key that is too long was taken")
	}
}
