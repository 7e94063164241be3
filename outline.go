package main

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// This file has what stands in so many places of the program that its copies, made by
// inlining, would be a part of the binary that one can see. Each is a call here, which
// none of those places feels. It is apart because that is all that they have in common.

// mutex is a sync.Mutex whose methods are called, not inlined: the copies in some seven
// hundred places would be 50 KB of the program, and a call is a few nanoseconds.
type mutex struct{ m sync.Mutex }

//go:noinline
func (m *mutex) Lock() { m.m.Lock() }

//go:noinline
func (m *mutex) Unlock() { m.m.Unlock() }

func (m *mutex) TryLock() bool { return m.m.TryLock() }

// errorf is fmt.Errorf, the half of which that the compiler would copy to each of some
// two hundred places is 30 KB.
//
//go:noinline
func errorf(format string, args ...any) error { return fmt.Errorf(format, args...) }

// Those of the library, by its names.

//go:noinline
func atoi(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

//go:noinline
func isText(a, b string) bool { return a == b }

//go:noinline
func itoa(n int) string { return strconv.Itoa(n) }

//go:noinline
func beginsWith(s, prefix string) bool { return strings.HasPrefix(s, prefix) }

//go:noinline
func hasText(s, part string) bool { return strings.Contains(s, part) }

//go:noinline
func cutText(s, sep string) (before, after string, found bool) { return strings.Cut(s, sep) }

//go:noinline
func splitText(s, sep string) []string { return strings.Split(s, sep) }

//go:noinline
func joinPath(dir, name string) string { return filepath.Join(dir, name) }

//go:noinline
func newError(text string) error { return errors.New(text) }

//go:noinline
func inList(list []string, s string) bool { return slices.Contains(list, s) }

//go:noinline
func hexText(b []byte) string { return hex.EncodeToString(b) }

//go:noinline
func newReader(r io.Reader, size int) *bufio.Reader { return bufio.NewReaderSize(r, size) }

//go:noinline
func newReplacer(pairs ...string) *strings.Replacer { return strings.NewReplacer(pairs...) }

//go:noinline
func joinErrors(errs ...error) error { return errors.Join(errs...) }

//go:noinline
func joinHostPort(host, port string) string { return net.JoinHostPort(host, port) }

//go:noinline
func baseName(p string) string { return path.Base(p) }

//go:noinline
func cutPrefix(s, prefix string) (after string, found bool) { return strings.CutPrefix(s, prefix) }

// namesIn is what is in a directory, by name. Not os.ReadDir, which brings a sort of
// its own: 15 KB.
func namesIn(dir string) ([]string, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// builder is a strings.Builder for texts that nobody waits for.
type builder struct{ strings.Builder }

//go:noinline
func (b *builder) WriteString(s string) (int, error) { return b.Builder.WriteString(s) }

//go:noinline
func (b *builder) WriteByte(c byte) error { return b.Builder.WriteByte(c) }
