// client_spool.go is what the client remembers beyond its memory: a spool of records
// that are read back in their order, and a sorter that hands them out by their keys.
// Both begin in memory and go on in a temporary file that has no name any more, so
// that nothing is left behind however the client ends. It is a file of its own
// because neither knows what the records say: trees and plans are elsewhere.

package main

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"io"
	"os"
	"slices"
	"sort"

	"golang.org/x/sys/unix"
)

const (
	// spoolMemory is how much of a spool stays in memory: the plan of some 2,000
	// files. A sync has six of them.
	spoolMemory = 128 << 10
	// sortMemory is how much of a sorter stays in memory: some 20,000 names. Two sort
	// the sides of a directory, and the whole client may have 40 MiB.
	sortMemory = 1 << 20
	// sortFan is how many sorted runs are merged at once. With sortMemory for all of
	// them each is read in pieces of 16 KiB.
	sortFan = 64
	// maxRecord bounds key and rest of a record: Linux has no path as long.
	maxRecord = 1<<16 - 1
)

// temporaryFile is a file without a name.
func temporaryFile() (*os.File, error) {
	f, err := os.CreateTemp("", ".berth-spool-")
	if err == nil {
		if err = os.Remove(f.Name()); err == nil {
			return f, nil
		}
		f.Close()
	}
	return nil, errorf("cannot make a temporary file: %w; TMPDIR names a directory with room", err)
}

// spoolFailed is an error of a temporary file, which has no name to tell.
//
//go:noinline
func spoolFailed(err error) error {
	return errorf("the temporary file failed: %w; TMPDIR names a directory with room", err)
}

// A spool keeps records in the order in which they were added. Its zero value is empty.
type spool struct {
	buf   []byte // what is not in the file yet
	file  *os.File
	count int
}

// add puts a record behind the others. The spool keeps no part of it.
func (s *spool) add(record []byte) error {
	s.buf = binary.AppendUvarint(s.buf, uint64(len(record)))
	s.buf = append(s.buf, record...)
	s.count++
	if len(s.buf) < spoolMemory {
		return nil
	}
	if s.file == nil {
		var err error
		if s.file, err = temporaryFile(); err != nil {
			return err
		}
	}
	if _, err := s.file.Write(s.buf); err != nil {
		return spoolFailed(err)
	}
	s.buf = s.buf[:0]
	return nil
}

// each calls fn for every record, in order and as often as it is wanted. A record
// holds until fn returns; nothing may be added meanwhile.
func (s *spool) each(fn func(record []byte) error) error {
	if s.file != nil {
		end, err := s.file.Seek(0, io.SeekEnd)
		if err != nil {
			return spoolFailed(err)
		}
		var page []byte // begins at a record
		piece := make([]byte, spoolMemory/4)
		for at := int64(0); at < end; {
			n, err := s.file.ReadAt(piece[:min(int64(len(piece)), end-at)], at)
			if n == 0 {
				return spoolFailed(cmp.Or(err, io.ErrUnexpectedEOF))
			}
			at += int64(n)
			page = append(page, piece[:n]...)
			rest, err := eachRecord(page, fn)
			if err != nil {
				return err
			}
			page = append(page[:0], rest...)
		}
	}
	_, err := eachRecord(s.buf, fn)
	return err
}

// eachRecord calls fn for the whole records of buf and returns what is behind them.
func eachRecord(buf []byte, fn func(record []byte) error) (rest []byte, err error) {
	for len(buf) > 0 {
		n, w := binary.Uvarint(buf)
		if w <= 0 || uint64(len(buf)-w) < n {
			return buf, nil
		}
		if err := fn(buf[w : w+int(n)]); err != nil {
			return nil, err
		}
		buf = buf[w+int(n):]
	}
	return nil, nil
}

// close gives the file back. The spool is empty then.
func (s *spool) close() {
	if s.file != nil {
		s.file.Close()
	}
	*s = spool{}
}

// --- sorting ---

// A sorter takes records in any order and hands them out by the bytes of their keys,
// those with equal keys in the order in which they came. Its zero value is empty.
// Memory is bounded whatever their number.
type sorter struct {
	memory  int      // 0: sortMemory
	arena   []byte   // records: length of key and of rest, two bytes each, then both
	at      []uint32 // where they begin
	last    int      // where the last one begins
	ordered bool     // they came in order; tells nothing before the first

	file   *os.File
	end    int64       // of what is in the file
	levels [][]sortRun // runs of level n are made of sortFan of level n-1

	pos   int         // in at, while records are read from memory
	heads []*sortHead // a heap, while runs are merged
	moved bool        // the first of heads has been handed out
}

// A sortRun is a sorted part of the file.
type sortRun struct{ at, end int64 }

// A sortHead reads a run.
type sortHead struct {
	run  sortRun
	rank int    // earlier runs win where keys are equal
	buf  []byte // begins at the record that is next
	keep []byte // all of the memory for buf
	key  []byte
	rest []byte
}

// add takes a record. The sorter keeps no part of it.
func (s *sorter) add(key, rest []byte) error {
	if len(key) > maxRecord || len(rest) > maxRecord {
		return errorf("a name of %d bytes is too long", len(key))
	}
	if len(s.at) > 0 && len(s.arena)+4*len(s.at)+len(key)+len(rest)+8 > s.limit() {
		if err := s.spill(); err != nil {
			return err
		}
	}
	if len(s.at) == 0 && len(s.levels) == 0 {
		s.ordered = true
	} else if s.ordered {
		before, _ := s.record(s.last)
		s.ordered = bytes.Compare(before, key) <= 0
	}
	s.last = len(s.arena)
	s.at = append(s.at, uint32(len(s.arena)))
	s.arena = appendSortRecord(s.arena, key, rest)
	return nil
}

func appendSortRecord(b, key, rest []byte) []byte {
	b = append(b, byte(len(key)), byte(len(key)>>8), byte(len(rest)), byte(len(rest)>>8))
	b = append(b, key...)
	return append(b, rest...)
}

func (s *sorter) limit() int {
	if s.memory > 0 {
		return s.memory
	}
	return sortMemory
}

// empty tells that nothing was added.
func (s *sorter) empty() bool { return len(s.at) == 0 && len(s.levels) == 0 }

// record is what begins at a place in the arena.
func (s *sorter) record(at int) (key, rest []byte) {
	key, rest, _ = cutSortRecord(s.arena[at:])
	return key, rest
}

// cutSortRecord takes the first record off b; size is 0 if it is not all there.
func cutSortRecord(b []byte) (key, rest []byte, size int) {
	if len(b) < 4 {
		return nil, nil, 0
	}
	k, r := int(b[0])|int(b[1])<<8, int(b[2])|int(b[3])<<8
	if len(b) < 4+k+r {
		return nil, nil, 0
	}
	return b[4 : 4+k : 4+k], b[4+k : 4+k+r : 4+k+r], 4 + k + r
}

// order sorts what is in memory.
func (s *sorter) order() {
	if s.ordered {
		return
	}
	sort.Slice(s.at, func(i, j int) bool { // slices.SortFunc is 5 KB more of code
		a, b := s.at[i], s.at[j]
		x, _ := s.record(int(a))
		y, _ := s.record(int(b))
		if c := bytes.Compare(x, y); c != 0 {
			return c < 0
		}
		return a < b
	})
}

// spill writes what is in memory to the file, as a run.
func (s *sorter) spill() error {
	if s.file == nil {
		var err error
		if s.file, err = temporaryFile(); err != nil {
			return err
		}
	}
	s.order()
	w := s.writer()
	for _, at := range s.at {
		if err := w.add(s.record(int(at))); err != nil {
			return err
		}
	}
	run, err := w.close()
	if err != nil {
		return err
	}
	// The last record stays for add to compare with.
	s.at = s.at[:0]
	s.arena = append(s.arena[:0], s.arena[s.last:]...)
	s.last = 0
	return s.gather(0, run)
}

// gather adds a run to a level, and merges a level that is full.
func (s *sorter) gather(level int, run sortRun) error {
	if level == len(s.levels) {
		s.levels = append(s.levels, nil)
	}
	s.levels[level] = append(s.levels[level], run)
	if len(s.levels[level]) < sortFan {
		return nil
	}
	runs := s.levels[level]
	m := &sorter{file: s.file}
	if err := m.open(runs, make([]byte, s.limit()/4)); err != nil {
		return err
	}
	w := s.writer()
	for {
		key, rest, ok, err := m.next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if err := w.add(key, rest); err != nil {
			return err
		}
	}
	whole, err := w.close()
	if err != nil {
		return err
	}
	s.levels[level] = s.levels[level][:0]
	// The room is given back where the file system can do it; it does no harm if not.
	unix.Fallocate(int(s.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, runs[0].at, runs[sortFan-1].end-runs[0].at)
	return s.gather(level+1, whole)
}

// A runWriter writes a run behind the others.
type runWriter struct {
	s   *sorter
	run sortRun
	buf []byte
}

func (s *sorter) writer() *runWriter {
	return &runWriter{s: s, run: sortRun{s.end, s.end}, buf: make([]byte, 0, 2*spoolMemory)}
}

func (w *runWriter) add(key, rest []byte) error {
	w.buf = appendSortRecord(w.buf, key, rest)
	if len(w.buf) < spoolMemory {
		return nil
	}
	return w.flush()
}

func (w *runWriter) flush() error {
	n, err := w.s.file.WriteAt(w.buf, w.s.end)
	w.s.end += int64(n)
	w.buf = w.buf[:0]
	if err != nil {
		return spoolFailed(err)
	}
	return nil
}

func (w *runWriter) close() (sortRun, error) {
	err := w.flush()
	w.run.end = w.s.end
	return w.run, err
}

// sort ends the adding; next hands out what was added.
func (s *sorter) sort() error {
	if len(s.levels) == 0 {
		s.order()
		return nil
	}
	if len(s.at) > 0 {
		if err := s.spill(); err != nil {
			return err
		}
	}
	// Upper levels hold what came earlier. Few runs are left over in each, so that
	// more than two levels together hardly pass the number that one merge is meant for.
	var runs []sortRun
	for _, level := range slices.Backward(s.levels) {
		runs = append(runs, level...)
	}
	return s.open(runs, s.arena[:cap(s.arena)])
}

// open begins to merge runs, the earlier ones first, with memory for all of them.
func (s *sorter) open(runs []sortRun, memory []byte) error {
	share := max(len(memory)/len(runs), 4<<10)
	s.heads, s.moved = s.heads[:0], false
	for i, run := range runs {
		h := &sortHead{run: run, rank: i}
		if len(memory) >= share {
			h.keep, memory = memory[:share:share], memory[share:]
		} else {
			h.keep = make([]byte, share)
		}
		ok, err := h.advance(s.file)
		if err != nil {
			return err
		}
		if ok {
			s.heads = append(s.heads, h)
		}
	}
	for i := len(s.heads)/2 - 1; i >= 0; i-- {
		s.sink(i)
	}
	return nil
}

// advance goes to the next record of a run.
func (h *sortHead) advance(f *os.File) (bool, error) {
	for {
		key, rest, size := cutSortRecord(h.buf)
		if size > 0 {
			h.key, h.rest, h.buf = key, rest, h.buf[size:]
			return true, nil
		}
		if h.run.at == h.run.end {
			if len(h.buf) > 0 {
				return false, spoolFailed(io.ErrUnexpectedEOF)
			}
			return false, nil
		}
		if len(h.buf) == len(h.keep) { // one record is larger than its share
			h.keep = make([]byte, 2*len(h.keep))
		}
		held := copy(h.keep, h.buf)
		n, err := f.ReadAt(h.keep[held:min(int64(len(h.keep)), int64(held)+h.run.end-h.run.at)], h.run.at)
		if n == 0 {
			return false, spoolFailed(cmp.Or(err, io.ErrUnexpectedEOF))
		}
		h.run.at += int64(n)
		h.buf = h.keep[:held+n]
	}
}

func (s *sorter) before(a, b *sortHead) bool {
	if c := bytes.Compare(a.key, b.key); c != 0 {
		return c < 0
	}
	return a.rank < b.rank
}

// sink brings the heap in order below i.
func (s *sorter) sink(i int) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(s.heads); child++ {
			if s.before(s.heads[child], s.heads[least]) {
				least = child
			}
		}
		if least == i {
			return
		}
		s.heads[i], s.heads[least] = s.heads[least], s.heads[i]
		i = least
	}
}

// next is the next record in order, or not ok behind the last. It holds until the
// next call.
func (s *sorter) next() (key, rest []byte, ok bool, err error) {
	if len(s.heads) == 0 && !s.moved {
		if s.pos == len(s.at) {
			return nil, nil, false, nil
		}
		key, rest = s.record(int(s.at[s.pos]))
		s.pos++
		return key, rest, true, nil
	}
	if s.moved {
		s.moved = false
		more, err := s.heads[0].advance(s.file)
		if err != nil {
			return nil, nil, false, err
		}
		if !more {
			s.heads[0] = s.heads[len(s.heads)-1]
			s.heads = s.heads[:len(s.heads)-1]
		}
		s.sink(0)
	}
	if len(s.heads) == 0 {
		return nil, nil, false, nil
	}
	s.moved = true
	return s.heads[0].key, s.heads[0].rest, true, nil
}

// reset makes the sorter empty, to be used again.
func (s *sorter) reset() {
	if s.file != nil {
		s.file.Close()
	}
	*s = sorter{memory: s.memory, arena: s.arena[:0], at: s.at[:0], heads: s.heads[:0]}
}

// close makes the sorter empty and gives its memory back.
//
//go:noinline
func (s *sorter) close() {
	s.reset()
	*s = sorter{}
}
