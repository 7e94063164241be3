// client_tree.go reads trees: a directory's entries from the disk here and from a
// listing of the box, and both side by side, directory by directory and name by name,
// in memory that does not grow with them. It decides nothing: what differs goes to a
// visitor, and client_sync.go is one. Names from the box are only data here; what may
// be done with them is badRemoteName's to say (client_entry.go).

package main

import (
	"encoding/binary"
	"errors"
	"os"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// treeBatch is how much of a listing goes from the connection's reader to the
	// walk at once, some 1,000 names, and treeBatches how many of these may lie
	// between them: what is read ahead while the disk is looked at.
	treeBatch   = 64 << 10
	treeBatches = 8
	// dirSetMemory is how much of the names of a directory's directories stays in
	// memory, at every level of a tree, and dirSetBlock what is read of the others at once.
	dirSetMemory = 64 << 10
	dirSetBlock  = 4 << 10
)

// --- a directory here ---

// readLocalDir calls fn for every entry of a directory below root, in no order; ".",
// the empty name, is root itself. Links are not followed. The entry holds until fn
// returns. A name that vanishes meanwhile is left out; anything else that cannot be
// read is an error.
func readLocalDir(root *os.Root, dir string, fn func(e *treeEntry) error) error {
	if dir == "" {
		dir = "."
	}
	f, err := root.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	bp := direntBuffers.Get().(*[]byte)
	defer direntBuffers.Put(bp)
	fd := int(f.Fd())
	var e treeEntry
	var st unix.Stat_t
	for {
		n, err := unix.Getdents(fd, *bp)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("getdents", err)
		}
		if n == 0 {
			return nil
		}
		for rest := (*bp)[:n]; len(rest) > 0; {
			var name []byte
			name, rest = nextDirent(rest)
			e.name = borrowed(name)
			if e.name == "." || e.name == ".." {
				continue
			}
			err := unix.Fstatat(fd, e.name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
			for err == unix.EINTR {
				err = unix.Fstatat(fd, e.name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
			}
			if err == unix.ENOENT {
				continue
			}
			if err != nil {
				return os.NewSyscallError("stat", err)
			}
			e.size, e.mode = st.Size, st.Mode&0o7777
			e.mtime = nanoTime(int64(st.Mtim.Sec), int64(st.Mtim.Nsec))
			switch st.Mode & unix.S_IFMT {
			case unix.S_IFREG:
				e.kind = 'f'
			case unix.S_IFDIR:
				e.kind = 'd'
			case unix.S_IFLNK:
				e.kind = 'l'
			default:
				e.kind = 'o'
			}
			if err := fn(&e); err != nil {
				return err
			}
		}
	}
}

// --- a tree on the box ---

// A remoteTree is a recursive listing while it arrives: lines are taken apart in the
// goroutine that reads the connection, and handed over in batches. That goroutine waits
// if they are not taken, and so the box does.
type remoteTree struct {
	full chan []byte // batches of records: length of the name, and appendEntry
	free chan []byte
	stop chan struct{}
	err  error // once full is closed: why there is no more, if not the end

	whole []byte // the batch that is read
	rest  []byte // what is left of it
	ahead treeEntry
	taken bool // ahead is not the next any more
}

var errTreeStopped = errors.New("the listing is not wanted any more")

// readRemoteTree begins a listing. list calls its argument with each line, as
// remote.list does, and returns when there are no more.
func readRemoteTree(list func(each func(line []byte) error) error) *remoteTree {
	r := &remoteTree{full: make(chan []byte, treeBatches), free: make(chan []byte, treeBatches), stop: make(chan struct{}), taken: true}
	for range treeBatches {
		r.free <- nil
	}
	go func() {
		defer close(r.full)
		var e treeEntry
		batch := <-r.free
		pass := func() error {
			select {
			case r.full <- batch:
			case <-r.stop:
				return errTreeStopped
			}
			select {
			case batch = <-r.free:
				batch = batch[:0]
				return nil
			case <-r.stop:
				return errTreeStopped
			}
		}
		r.err = list(func(line []byte) error {
			if err := borrowListLine(line, &e); err != nil {
				return err
			}
			if len(e.name) > maxTreeName {
				return errorf("the listing has a name of %d bytes", len(e.name))
			}
			if part := len(e.name) - 1 - strings.LastIndexByte(e.name, '/'); part > maxPath {
				return errorf("the listing has a name with %d bytes between two slashes, and no disk has those", part)
			}
			if len(batch)+len(e.name)+2+entryBytes > treeBatch && len(batch) > 0 {
				if err := pass(); err != nil {
					return err
				}
			}
			if batch == nil {
				batch = make([]byte, 0, treeBatch)
			}
			batch = binary.LittleEndian.AppendUint16(batch, uint16(len(e.name)))
			batch = append(batch, e.name...)
			batch = appendEntry(batch, &e)
			return nil
		})
		if r.err == nil && len(batch) > 0 {
			select {
			case r.full <- batch:
			case <-r.stop:
			}
		}
	}()
	return r
}

// peek is the entry that is next, nil behind the last. It holds until the next peek
// after a take.
func (r *remoteTree) peek() (*treeEntry, error) {
	if !r.taken {
		return &r.ahead, nil
	}
	for len(r.rest) == 0 {
		if r.whole != nil {
			r.free <- r.whole // never waits: there are no more batches than places
			r.whole = nil
		}
		batch, ok := <-r.full
		if !ok {
			return nil, r.err
		}
		r.whole, r.rest = batch, batch
	}
	n := int(binary.LittleEndian.Uint16(r.rest))
	r.ahead.name = borrowed(r.rest[2 : 2+n])
	readEntry(r.rest[2+n:], &r.ahead)
	r.rest = r.rest[2+n+entryBytes:]
	r.taken = false
	return &r.ahead, nil
}

func (r *remoteTree) take() { r.taken = true }

// close ends the listing, and waits until the goroutine that reads it has seen that.
// The connection drops the rest of it by itself.
func (r *remoteTree) close() {
	close(r.stop)
	for range r.full {
	}
}

// entryBytes is what appendEntry writes: all but the strings.
const entryBytes = 1 + 4 + 8 + 8

func appendEntry(b []byte, e *treeEntry) []byte {
	b = append(b, e.kind)
	b = binary.LittleEndian.AppendUint32(b, e.mode)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.size))
	return binary.LittleEndian.AppendUint64(b, uint64(e.mtime))
}

//go:noinline
func readEntry(b []byte, e *treeEntry) {
	e.kind = b[0]
	e.mode = binary.LittleEndian.Uint32(b[1:])
	e.size = int64(binary.LittleEndian.Uint64(b[5:]))
	e.mtime = int64(binary.LittleEndian.Uint64(b[13:]))
	e.target = ""
}

// splitName takes the last part off a name.
//
//go:noinline
func splitName(name string) (dir, base string) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return "", name
}

// joinName puts a directory, empty for the top, in front of a name.
func joinName(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// --- both side by side ---

// treeSides tells on which sides a directory is to be read.
type treeSides byte

const (
	treeLocal  treeSides = 1 << iota // the disk here
	treeRemote                       // the box
)

// A treeDir is a directory while its entries, or those below, are visited.
type treeDir struct {
	parent *treeDir
	path   string // empty: the top
	sides  treeSides
	data   byte // the visitor's, as visit returned it
	kept   bool // the visitor's
	depth  int  // of the top: 0

	below   dirSet // directories that are to be read yet
	ordered bool   // the box tells of them in the order of their names
	pos     dirPos // if so, the first of below that it has not told of
}

// A treeVisitor hears of two trees. Entries hold until it returns; their names are
// those in the directory.
type treeVisitor interface {
	// visit is called for every name of a directory, in the order of the names' bytes; an
	// entry is nil where that side has none. It returns on which sides to go on below it,
	// if it is a directory, and what that directory's data is to be.
	visit(dir *treeDir, local, remote *treeEntry) (sides treeSides, data byte, err error)
	// leave is called when all below a directory was visited.
	leave(dir *treeDir) error
	// unreadable is called for a directory here that cannot be read, and of which nothing
	// is visited therefore. Neither is what the box has in it. dir is what it is in.
	unreadable(dir *treeDir, path string, err error) error
	// unruly is called for what a listing should not have: names that lead elsewhere, and
	// what belongs to no directory that it told of, as when one came while it was made.
	unruly(name string) error
}

// A treeWalk goes through a tree on the disk and one on the box in step. What the box
// sends gives the order: depth first, all of a directory before what is below it.
type treeWalk struct {
	root    *os.Root    // nil: there is nothing here
	remote  *remoteTree // nil: there is nothing there
	visitor treeVisitor

	here, there sorter // entries of the directory that is visited
	top         *treeDir
	dropped     string // what is below this directory of the box's is passed over, with its "/"
}

// run visits everything. The visitor's errors end it, and so does the listing's.
func (w *treeWalk) run() error {
	defer w.close()
	sides := treeSides(0)
	if w.root != nil {
		sides |= treeLocal
	}
	if w.remote != nil {
		sides |= treeRemote
	}
	if err := w.enter("", sides, 0); err != nil {
		return err
	}
	for w.remote != nil {
		e, err := w.remote.peek()
		if err != nil {
			return err
		}
		if e == nil {
			break
		}
		if err := w.group(e); err != nil {
			return err
		}
	}
	for w.top != nil {
		if err := w.finish(); err != nil {
			return err
		}
	}
	return nil
}

func (w *treeWalk) close() {
	w.here.close()
	w.there.close()
	for ; w.top != nil; w.top = w.top.parent {
		w.top.below.close()
	}
	if w.remote != nil {
		w.remote.close()
	}
}

// group takes what the box tells of one directory, which e is the first of.
func (w *treeWalk) group(e *treeEntry) error {
	if w.dropped != "" && beginsWith(e.name, w.dropped) {
		w.remote.take()
		return nil
	}
	path, _ := splitName(e.name)
	path = strings.Clone(path)
	if path == "" { // the top's were taken when it was entered
		return w.drop(e)
	}
	parent, name := splitName(path)
	for w.top.parent != nil && w.top.path != parent {
		if beginsWith(parent, w.top.path) && parent[len(w.top.path)] == '/' {
			break // a directory below this one that it has not told of
		}
		if err := w.finish(); err != nil {
			return err
		}
	}
	dir := w.top
	if dir.path != parent {
		return w.drop(e)
	}
	found, sides, data, err := false, treeSides(0), byte(0), error(nil)
	if dir.ordered {
		found, sides, data, err = w.advance(dir, name)
	} else {
		found, sides, data, err = dir.below.find(name)
	}
	switch {
	case err != nil:
		return err
	case !found:
		return w.drop(e)
	case sides == 0:
		w.dropped = path + "/"
		return nil
	case sides&treeRemote == 0: // it was none of the box's when that told of its directory
		if err := w.alone(dir, name, sides, data); err != nil {
			return err
		}
		return w.drop(e)
	}
	return w.enter(path, sides, data)
}

// drop passes over all that the box tells of a directory.
func (w *treeWalk) drop(e *treeEntry) error {
	dir, _ := splitName(e.name)
	if dir == "" {
		w.remote.take()
		return w.visitor.unruly(strings.Clone(e.name))
	}
	w.dropped = strings.Clone(dir) + "/"
	return w.visitor.unruly(strings.TrimSuffix(w.dropped, "/"))
}

// advance goes on to a directory of dir's that the box has told of. Those before it are
// empty there, or not there at all.
func (w *treeWalk) advance(dir *treeDir, name string) (found bool, sides treeSides, data byte, err error) {
	for {
		was := dir.pos
		next, sides, data, ok, err := dir.below.next(&dir.pos)
		switch {
		case err != nil || !ok:
			return false, 0, 0, err
		case string(next) == name:
			return true, sides, data, nil
		case string(next) > name:
			dir.pos = was
			return false, 0, 0, nil
		}
		if err := w.alone(dir, string(next), sides, data); err != nil {
			return false, 0, 0, err
		}
	}
}

// alone visits a directory of dir's that has nothing on the box, and what is below.
func (w *treeWalk) alone(dir *treeDir, name string, sides treeSides, data byte) error {
	if sides == 0 {
		return nil
	}
	path := joinName(dir.path, name)
	if err := w.enter(path, sides, data); err != nil || w.top.path != path {
		return err
	}
	return w.finish()
}

// finish visits the directories of the top that the box has not told of, and leaves it.
func (w *treeWalk) finish() error {
	dir := w.top
	for {
		at := dir.pos.i
		name, sides, data, ok, err := dir.below.next(&dir.pos)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if !dir.ordered && dir.below.isFound(at) {
			continue
		}
		if err := w.alone(dir, string(name), sides, data); err != nil {
			return err
		}
	}
	if err := w.visitor.leave(dir); err != nil {
		return err
	}
	dir.below.close()
	w.top = dir.parent
	return nil
}

// enter visits the entries of a directory, and makes it the top, unless it cannot be
// read.
func (w *treeWalk) enter(path string, sides treeSides, data byte) error {
	w.here.reset()
	w.there.reset()
	var record [entryBytes]byte
	if sides&treeLocal != 0 {
		err := readLocalDir(w.root, path, func(e *treeEntry) error {
			return w.here.add([]byte(e.name), appendEntry(record[:0], e))
		})
		if err != nil {
			if path == "" {
				return err
			}
			w.dropped = path + "/"
			return w.visitor.unreadable(w.top, path, err)
		}
	}
	if w.remote != nil && sides&treeRemote != 0 {
		for {
			e, err := w.remote.peek()
			if err != nil {
				return err
			}
			if e == nil {
				break
			}
			dir, name := splitName(e.name)
			if dir != path {
				break
			}
			if len(name) < len(e.name) && dir == "" {
				name = e.name // "/x" is no name of the top's
			}
			if err := w.there.add([]byte(name), appendEntry(record[:0], e)); err != nil {
				return err
			}
			w.remote.take()
		}
	}
	dir := &treeDir{parent: w.top, path: path, sides: sides, data: data, ordered: w.there.ordered || w.there.empty()}
	if w.top != nil {
		dir.depth = w.top.depth + 1
	}
	w.top = dir
	return w.merge(dir)
}

// merge goes through both sides of a directory in step.
func (w *treeWalk) merge(dir *treeDir) error {
	here, there := treeCursor{sorted: &w.here}, treeCursor{sorted: &w.there}
	if err := joinErrors(w.here.sort(), w.there.sort(), here.advance(), there.advance()); err != nil {
		return err
	}
	for here.more || there.more {
		l, r := &here.entry, &there.entry
		if !there.more || here.more && l.name < r.name {
			r = nil
		} else if !here.more || r.name < l.name {
			l = nil
		}
		name := here.entry.name
		if l == nil {
			name = r.name
		}
		if name == "" || name == "." || name == ".." || strings.IndexByte(name, '/') >= 0 { // only a box tells such
			if err := w.visitor.unruly(strings.Clone(joinName(dir.path, name))); err != nil {
				return err
			}
		} else {
			sides, data, err := w.visitor.visit(dir, l, r)
			if err != nil {
				return err
			}
			if sides != 0 || r != nil && r.kind == 'd' {
				if err := dir.below.add(name, sides, data); err != nil {
					return err
				}
			}
		}
		if r != nil {
			if err := there.advance(); err != nil {
				return err
			}
		}
		if l != nil {
			if err := here.advance(); err != nil {
				return err
			}
		}
	}
	return nil
}

// A treeCursor goes through the entries of one side of a directory. A name that is
// there twice counts once.
type treeCursor struct {
	sorted *sorter
	entry  treeEntry
	name   []byte // of entry
	begun  bool
	more   bool // there is an entry
}

func (c *treeCursor) advance() error {
	for {
		key, rest, ok, err := c.sorted.next()
		if c.more = ok; !ok || err != nil {
			return err
		}
		if c.begun && string(key) == string(c.name) {
			continue
		}
		c.begun = true
		c.name = append(c.name[:0], key...)
		readEntry(rest, &c.entry)
		c.entry.name = borrowed(c.name)
		return nil
	}
}

// --- names of directories ---

// A dirSet is the directories of one directory that are to be read, in the order of
// their names. Beyond dirSetMemory they are in a temporary file.
type dirSet struct {
	blocks []dirBlock
	count  int
	memory int // bytes of blocks that have their data
	found  []uint64
	file   *os.File
	end    int64
	cache  []byte // the data of a block that is in the file
	cached int    // which, from 1
}

// A dirBlock is some of them: sides, data, the name's length in two bytes, the name.
type dirBlock struct {
	data  []byte // nil: in the file
	at    int64
	size  int
	first int    // of all the names
	name  string // the first
}

// A dirPos is a place in a dirSet: the next name to come.
type dirPos struct{ block, at, i int }

// add puts a name behind the others.
func (s *dirSet) add(name string, sides treeSides, data byte) error {
	if n := len(s.blocks); n == 0 || len(s.blocks[n-1].data)+len(name)+4 > dirSetBlock {
		if s.memory > dirSetMemory {
			if err := s.spill(); err != nil {
				return err
			}
		}
		s.blocks = append(s.blocks, dirBlock{first: s.count, name: strings.Clone(name)})
	}
	b := &s.blocks[len(s.blocks)-1]
	was := len(b.data)
	b.data = append(b.data, byte(sides), data, byte(len(name)), byte(len(name)>>8))
	b.data = append(b.data, name...)
	s.memory += len(b.data) - was
	s.count++
	return nil
}

func (s *dirSet) spill() error {
	if s.file == nil {
		var err error
		if s.file, err = temporaryFile(); err != nil {
			return err
		}
	}
	for i := range s.blocks {
		b := &s.blocks[i]
		if b.data == nil {
			continue
		}
		if _, err := s.file.WriteAt(b.data, s.end); err != nil {
			return spoolFailed(err)
		}
		b.at, b.size, b.data = s.end, len(b.data), nil
		s.end += int64(b.size)
	}
	s.memory = 0
	return nil
}

// load is the data of a block, until the next load.
func (s *dirSet) load(i int) ([]byte, error) {
	b := &s.blocks[i]
	if b.data != nil {
		return b.data, nil
	}
	if s.cached != i+1 {
		if cap(s.cache) < b.size {
			s.cache = make([]byte, max(b.size, dirSetBlock))
		}
		s.cache, s.cached = s.cache[:b.size], 0
		if _, err := s.file.ReadAt(s.cache, b.at); err != nil {
			return nil, spoolFailed(err)
		}
		s.cached = i + 1
	}
	return s.cache, nil
}

// next takes the name at pos, which holds until the set is asked again.
func (s *dirSet) next(pos *dirPos) (name []byte, sides treeSides, data byte, ok bool, err error) {
	for pos.block < len(s.blocks) {
		b, err := s.load(pos.block)
		if err != nil {
			return nil, 0, 0, false, err
		}
		if pos.at < len(b) {
			b = b[pos.at:]
			n := int(b[2]) | int(b[3])<<8
			pos.at += 4 + n
			pos.i++
			return b[4 : 4+n], treeSides(b[0]), b[1], true, nil
		}
		pos.block, pos.at = pos.block+1, 0
	}
	return nil, 0, 0, false, nil
}

// find looks for a name that was not found before.
func (s *dirSet) find(name string) (found bool, sides treeSides, data byte, err error) {
	at := sort.Search(len(s.blocks), func(i int) bool { return s.blocks[i].name > name }) - 1
	if at < 0 {
		return false, 0, 0, nil
	}
	for pos := (dirPos{block: at, i: s.blocks[at].first}); pos.block == at; {
		i := pos.i
		next, sides, data, ok, err := s.next(&pos)
		if err != nil || !ok || string(next) > name {
			return false, 0, 0, err
		}
		if string(next) != name {
			continue
		}
		if s.isFound(i) {
			break
		}
		for len(s.found) <= i/64 {
			s.found = append(s.found, 0)
		}
		s.found[i/64] |= 1 << (i % 64)
		return true, sides, data, nil
	}
	return false, 0, 0, nil
}

func (s *dirSet) isFound(i int) bool {
	return i/64 < len(s.found) && s.found[i/64]&(1<<(i%64)) != 0
}

func (s *dirSet) close() {
	if s.file != nil {
		s.file.Close()
	}
	*s = dirSet{}
}
