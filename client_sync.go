// client_sync.go makes the plan of a sync: it goes through both trees in step and
// writes down what has to be done to make one like the other, without doing any of it.
// That is why a dry run is exact, why --max-delete is known before anything is
// touched, and how a file that was renamed is found. The plan lies in spools, so its
// size is no matter of memory. What is done with it is client_syncrun.go's.

package main

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

const (
	// moveLeast is the smallest file that is looked for under another name: a smaller
	// one is sent sooner than two are read.
	moveLeast = 64 << 10
	// moveCopies is how many files of the same content are remembered as what a new
	// one may have been.
	moveCopies = 1024
)

// syncOptions is what a sync is asked to do.
type syncOptions struct {
	upload    bool // here → box; else box → here
	delete    bool
	maxDelete int // -1: no limit
	rules     treeRules
	dryRun    bool
	checksum  bool
	preserve  bool
	window    time.Duration // times that differ by no more are the same
	// For get -r and put -r, which are plans without comparing.
	all    bool // every file, whatever there is of it, and its time only with preserve
	resume bool // with all: go on with what an earlier run has left
}

// A syncStep is what is done about one name.
type syncStep struct {
	kind  stepKind
	flags stepFlags
	mode  uint32
	size  int64
	mtime int64 // to be set; nanoseconds
	name  string
	to    string // of a move; of a note, what is said

	old, new uint32 // of a move: its numbers in gone and files
}

type stepKind byte

const (
	stepFile   stepKind = iota // send or fetch
	stepCheck                  // the same, unless digests agree
	stepMkdir                  // make a directory
	stepMove                   // rename
	stepDelete                 // a file
	stepRmdir                  // an empty directory
	stepAttrs                  // set time or mode
	stepSkip                   // a note: left out, and that is as it should be
	stepFail                   // a note: left out, and that is an error
)

type stepFlags byte

const (
	stepTime   stepFlags = 1 << iota // mtime is to be set
	stepMode                         // mode is to be set
	stepSame                         // of a check: the times agree
	stepSilent                       // belongs to another step, which tells
)

const stepHead = 1 + 1 + 4 + 8 + 8 + 4 + 4 + 4

func (s *spool) addStep(a *syncStep) error {
	b := make([]byte, 0, 256)
	b = append(b, byte(a.kind), byte(a.flags))
	b = binary.LittleEndian.AppendUint32(b, a.mode)
	b = binary.LittleEndian.AppendUint64(b, uint64(a.size))
	b = binary.LittleEndian.AppendUint64(b, uint64(a.mtime))
	b = binary.LittleEndian.AppendUint32(b, a.old)
	b = binary.LittleEndian.AppendUint32(b, a.new)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(a.name)))
	b = append(b, a.name...)
	return s.add(append(b, a.to...))
}

// eachStep calls fn for every step with its number; the step is fn's to keep.
func (s *spool) eachStep(fn func(i int, a *syncStep) error) error {
	i := -1
	return s.each(func(b []byte) error {
		i++
		text := string(b[stepHead:])
		n := binary.LittleEndian.Uint32(b[30:])
		return fn(i, &syncStep{kind: stepKind(b[0]), flags: stepFlags(b[1]), mode: binary.LittleEndian.Uint32(b[2:]),
			size: int64(binary.LittleEndian.Uint64(b[6:])), mtime: int64(binary.LittleEndian.Uint64(b[14:])),
			old: binary.LittleEndian.Uint32(b[22:]), new: binary.LittleEndian.Uint32(b[26:]), name: text[:n], to: text[n:]})
	})
}

// A syncPlan is all that has to be done, in the order in which it is done: room is
// made where a name is taken by another kind, directories are made before what is in
// them, files that were renamed are moved, the others transferred; then the rest is
// deleted. It is also the visitor that makes it.
type syncPlan struct {
	o     syncOptions
	root  *os.Root // the tree here; nil: it has to be made
	notes spool    // skips and failures
	clear spool
	dirs  spool
	moves spool
	files spool
	gone  spool // deletes
	attrs spool

	// Bits for those of files and gone that are done by moves.
	movedFiles, movedGone bitSet

	checks   spool  // files, before the checks among them have been made
	oldFiles sorter // of gone: what may have been renamed, by size
	newFiles sorter // of files: what it may have become

	bytes     int64 // of files, without what moves
	unchanged int64
	skipped   int64
	failed    int64
	blind     bool // part of the source was not seen: what seems to be gone need not be
}

func (p *syncPlan) close() {
	for _, s := range []*spool{&p.notes, &p.clear, &p.dirs, &p.moves, &p.files, &p.gone, &p.attrs, &p.checks} {
		s.close()
	}
	p.oldFiles.close()
	p.newFiles.close()
}

// transfers is how many files have to be sent or fetched, deletions how much has to
// be deleted.
func (p *syncPlan) transfers() int { return p.files.count - p.movedFiles.count }
func (p *syncPlan) deletions() int { return p.clear.count + p.gone.count - p.movedGone.count }

// A bitSet is a set of small numbers.
type bitSet struct {
	words []uint64
	count int
}

func (s *bitSet) has(i int) bool {
	return i/64 < len(s.words) && s.words[i/64]&(1<<(i%64)) != 0
}

func (s *bitSet) set(i int, on bool) {
	for len(s.words) <= i/64 {
		s.words = append(s.words, 0)
	}
	if s.has(i) != on {
		s.words[i/64] ^= 1 << (i % 64)
		s.count++
		if !on {
			s.count -= 2
		}
	}
}

// makePlan compares a tree here, nil if there is none, with what list lists, nil if
// that is not there.
func makePlan(o syncOptions, root *os.Root, list func(each func(line []byte) error) (*remoteAnswer, error)) (*syncPlan, error) {
	p := &syncPlan{o: o, root: root}
	w := treeWalk{root: root, visitor: p}
	var answer *remoteAnswer
	if list != nil {
		w.remote = readRemoteTree(func(each func(line []byte) error) error {
			a, err := list(each)
			answer = a
			return err
		})
	}
	if err := w.run(); err != nil {
		p.close()
		return nil, err
	}
	if answer != nil && answer.Skipped > 0 {
		what := "directories on the box could not be read"
		if !o.upload {
			p.blind = true
		}
		if err := p.fail("", fmt.Sprintf("%d %s; their owner is another, or their mode forbids it", answer.Skipped, what)); err != nil {
			p.close()
			return nil, err
		}
	}
	return p, nil
}

// --- the visitor ---

// What data of a directory means.
const (
	dirDeleted byte = 1 << iota // it is only on the side that is changed
	dirEarly                    // and its name is wanted for a file
)

//go:noinline
func (p *syncPlan) skip(name, why string) error {
	p.skipped++
	return p.notes.addStep(&syncStep{kind: stepSkip, name: name, to: why})
}

//go:noinline
func (p *syncPlan) fail(name, why string) error {
	p.failed++
	return p.notes.addStep(&syncStep{kind: stepFail, name: name, to: why})
}

// keep says that something in a directory stays, and so does the directory.
func keepDir(dir *treeDir) {
	if dir != nil {
		dir.kept = true
	}
}

func (p *syncPlan) visit(dir *treeDir, local, remote *treeEntry) (treeSides, byte, error) {
	src, dst, srcSide, dstSide := local, remote, treeLocal, treeRemote
	if !p.o.upload {
		src, dst, srcSide, dstSide = remote, local, treeRemote, treeLocal
	}
	e := src
	if src == nil {
		e = dst
	}
	if src == nil && !p.o.delete {
		return 0, 0, nil
	}
	name := joinName(dir.path, e.name) // holds as long as e, if dir is the top
	stay := func(err error) (treeSides, byte, error) {
		if dst != nil {
			keepDir(dir)
		}
		return 0, 0, err
	}
	switch {
	case isReserved(e.name) && (!p.o.upload || src == nil || beginsWith(e.name, getPrefix)):
		return stay(nil) // what an interrupted get has left
	case isReserved(e.name):
		return stay(p.skip(name, "names that begin with "+reservedPrefix+" are berth's own"))
	case len(p.o.rules) > 0 && p.o.rules.excluded(name, e.kind == 'd'):
		return stay(nil)
	case strings.ContainsAny(e.name, "\r\n\x00"):
		if src == nil {
			return stay(p.fail(name, "a name with the end of a line in it cannot be told to a box; delete it there"))
		}
		return stay(p.fail(name, "a name with the end of a line in it cannot be told to a box; rename it"))
	case !p.o.upload && src != nil:
		if why := badRemoteName(e.name); why != "" {
			return stay(p.fail(name, "the box has a name that is not taken: "+why))
		}
	}
	if src == nil {
		early := dir.data & dirEarly
		if dst.kind == 'd' {
			return dstSide, dirDeleted | early, nil
		}
		return 0, 0, p.delete(name, dst, early != 0)
	}
	switch src.kind {
	case 'd':
		if dir.depth >= maxDepth {
			return stay(p.fail(name, fmt.Sprintf("directories lie more than %d deep in each other, deeper than any box lists", maxDepth)))
		}
		if dst != nil && dst.kind == 'd' {
			return treeLocal | treeRemote, 0, p.mode(name, src, dst)
		}
		if dst != nil {
			if !p.o.delete {
				return stay(p.conflict(name, src, dst))
			}
			if err := p.delete(name, dst, true); err != nil {
				return 0, 0, err
			}
		}
		if err := p.dirs.addStep(&syncStep{kind: stepMkdir, flags: p.quiet(), name: name}); err != nil {
			return 0, 0, err
		}
		if p.o.preserve { // last, as it may forbid to write what is to be in it
			err := p.attrs.addStep(&syncStep{kind: stepAttrs, flags: stepMode | stepSilent, mode: src.mode & 0o777, name: name})
			return srcSide, 0, err
		}
		return srcSide, 0, nil
	case 'f':
		switch {
		case dst == nil:
			return 0, 0, p.file(name, src)
		case dst.kind == 'f':
			return 0, 0, p.compare(name, src, dst)
		case !p.o.delete:
			return stay(p.conflict(name, src, dst))
		}
		if err := p.file(name, src); err != nil {
			return 0, 0, err
		}
		if dst.kind == 'd' {
			return dstSide, dirDeleted | dirEarly, nil
		}
		return 0, 0, p.delete(name, dst, true)
	case 'l':
		return stay(p.skip(name, "a link"))
	}
	return stay(p.skip(name, "neither a file nor a directory"))
}

func (p *syncPlan) leave(dir *treeDir) error {
	if dir.kept && dir.parent != nil {
		keepDir(dir.parent)
	}
	if dir.data&dirDeleted == 0 || dir.kept {
		return nil
	}
	to := &p.gone
	if dir.data&dirEarly != 0 {
		to = &p.clear
	}
	return to.addStep(&syncStep{kind: stepRmdir, name: dir.path})
}

func (p *syncPlan) unreadable(dir *treeDir, path string, err error) error {
	keepDir(dir)
	if p.o.upload {
		p.blind = true
	}
	return p.fail(path, localError(err).Error())
}

func (p *syncPlan) unruly(name string) error {
	if !p.o.upload {
		p.blind = true
	}
	return p.fail(name, "the box's listing does not say where this belongs, perhaps because it came meanwhile; try again")
}

// conflict is for a name that is of another kind on either side.
func (p *syncPlan) conflict(name string, src, dst *treeEntry) error {
	kind := map[byte]string{'f': "a file", 'd': "a directory", 'l': "a link", 'o': "neither file nor directory"}
	here, there := kind[src.kind], kind[dst.kind]
	if !p.o.upload {
		here, there = there, here
	}
	way := "--delete replaces it"
	if p.o.all {
		way = "remove or rename one of them"
	}
	return p.fail(name, fmt.Sprintf("it is %s here and %s on the box; %s", here, there, way))
}

func (p *syncPlan) delete(name string, e *treeEntry, early bool) error {
	if early {
		return p.clear.addStep(&syncStep{kind: stepDelete, name: name})
	}
	if e.kind == 'f' && e.size >= moveLeast {
		if err := addCandidate(&p.oldFiles, name, p.gone.count, e); err != nil {
			return err
		}
	}
	return p.gone.addStep(&syncStep{kind: stepDelete, name: name})
}

// quiet is for steps that only a sync tells of: get and put tell of files.
func (p *syncPlan) quiet() stepFlags {
	if p.o.all {
		return stepSilent
	}
	return 0
}

// mode is for a directory or a file that is there already.
func (p *syncPlan) mode(name string, src, dst *treeEntry) error {
	if !p.o.preserve || src.mode&0o777 == dst.mode&0o777 {
		return nil
	}
	return p.attrs.addStep(&syncStep{kind: stepAttrs, flags: stepMode | p.quiet(), mode: src.mode & 0o777, name: name})
}

// compare decides about a file that is on both sides.
func (p *syncPlan) compare(name string, src, dst *treeEntry) error {
	same := p.sameTime(src.mtime, dst.mtime)
	switch {
	case p.o.all || src.size != dst.size:
		return p.file(name, src)
	case p.o.checksum:
		a := p.step(name, src)
		a.kind = stepCheck
		if same {
			a.flags |= stepSame
		}
		if !p.o.preserve || src.mode&0o777 == dst.mode&0o777 {
			a.flags &^= stepMode // if the digests agree
		}
		return p.checks.addStep(a)
	case same:
		p.unchanged++
		return p.mode(name, src, dst)
	}
	return p.file(name, src)
}

// step is a transfer of src.
func (p *syncPlan) step(name string, src *treeEntry) *syncStep {
	a := &syncStep{kind: stepFile, size: src.size, mtime: src.mtime, mode: src.mode & 0o777, name: name}
	if p.o.preserve {
		a.flags |= stepMode
	}
	if p.o.preserve || !p.o.all {
		a.flags |= stepTime
	}
	return a
}

func (p *syncPlan) file(name string, src *treeEntry) error {
	a := p.step(name, src)
	if p.o.checksum {
		return p.checks.addStep(a) // with the checks, to be in order
	}
	return p.transfer(a)
}

// transfer adds what will be sent or fetched for certain, but for moves.
func (p *syncPlan) transfer(a *syncStep) error {
	p.bytes += a.size
	if p.o.delete && a.size >= moveLeast {
		if err := addCandidate(&p.newFiles, a.name, p.files.count, &treeEntry{size: a.size, mtime: a.mtime, mode: a.mode}); err != nil {
			return err
		}
	}
	return p.files.addStep(a)
}

// sameTime compares two times as the coarser of the two file systems would: one whose
// time has no fraction may be unable to keep any. Boxes have no times before 1970.
func (p *syncPlan) sameTime(a, b int64) bool {
	a, b = max(a, 0), max(b, 0)
	if max(a, b)-min(a, b) <= int64(p.o.window) {
		return true
	}
	unit := max(timeUnit(a), timeUnit(b))
	return a/unit == b/unit
}

// timeUnit is how fine a file system must be at least to have kept a time: whole
// seconds (ext3, HFS+), hundredths (exFAT), milliseconds, microseconds.
func timeUnit(ns int64) int64 {
	for _, unit := range []time.Duration{time.Second, 10 * time.Millisecond, time.Millisecond} {
		if ns%int64(unit) == 0 {
			return int64(unit)
		}
	}
	return int64(time.Microsecond)
}

// --- files by content ---

// A digester finds the SHA-256 of files on the box. Results come in the order of
// asking, while later ones are computed.
type digester interface {
	// ask has done called with an answer. With an empty do there is nothing to ask, and
	// done is called in its turn.
	ask(q remoteRequest, done func(a *remoteAnswer, err error) error) error
	// settle waits for all answers.
	settle() error
}

// settleChecks compares by content what has to be, with remotePath as the place of a
// name on the box, and then looks for files that have moved.
func (p *syncPlan) settleChecks(ctx context.Context, d digester, remotePath func(name string) string) error {
	err := p.checks.eachStep(func(_ int, a *syncStep) error {
		if a.kind == stepFile {
			return d.ask(remoteRequest{}, func(*remoteAnswer, error) error { return p.transfer(a) })
		}
		half := false
		if a.flags&stepSame == 0 && p.o.upload {
			// What an interrupted upload has left may have all its bytes and is not complete
			// all the same: setting its time would hide that.
			q := remoteRequest{Do: "stat", Path: remotePath(a.name)}
			if err := d.ask(q, func(s *remoteAnswer, err error) error { half = err == nil && s.partial() != nil; return nil }); err != nil {
				return err
			}
		}
		return d.ask(remoteRequest{Do: "hash", Path: remotePath(a.name)}, func(h *remoteAnswer, err error) error {
			if ctx.Err() != nil {
				return errInterrupted
			}
			same := false
			if err == nil && !half {
				ours, lerr := p.localDigest(ctx, a.name)
				same = lerr == nil && ours == h.SHA256
			}
			if !same { // also if one cannot be read: the transfer says why
				a.kind, a.flags = stepFile, a.flags|stepTime
				if p.o.preserve {
					a.flags |= stepMode
				}
				return p.transfer(a)
			}
			p.unchanged++
			a.kind = stepAttrs
			if a.flags&stepSame != 0 {
				a.flags &^= stepTime
			}
			if a.flags&(stepTime|stepMode) == 0 {
				return nil
			}
			return p.attrs.addStep(a)
		})
	})
	if err = joinErrors(err, d.settle()); err != nil {
		return err
	}
	p.checks.close()
	if p.blind || p.oldFiles.empty() || p.newFiles.empty() {
		return nil
	}
	return p.findMoves(ctx, d, remotePath)
}

func (p *syncPlan) localDigest(ctx context.Context, name string) (string, error) {
	f, err := localFiles{p.root}.open(name, os.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	sum, err := digestUpTo(ctx, f, info.Size(), nil)
	if err != nil {
		return "", err
	}
	return hexText(sum.Sum(nil)), nil
}

// A moveCandidate is a file that may have been renamed, or may be what one became.
type moveCandidate struct {
	number int // among files or gone
	size   int64
	mtime  int64
	mode   uint32
	name   string
}

const candidateBytes = 8 + 8 + 4

// addCandidate adds a file with its size in front of the key.
func addCandidate(s *sorter, name string, number int, e *treeEntry) error {
	key := append(binary.BigEndian.AppendUint64(make([]byte, 0, 256), uint64(e.size)), name...)
	return s.add(key, candidateRest(number, e.mtime, e.mode))
}

func candidateRest(number int, mtime int64, mode uint32) []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, candidateBytes), uint64(number))
	b = binary.LittleEndian.AppendUint64(b, uint64(mtime))
	return binary.LittleEndian.AppendUint32(b, mode)
}

// nextCandidate is nil behind the last.
func nextCandidate(s *sorter, prefix int) (*moveCandidate, []byte, error) {
	key, rest, ok, err := s.next()
	if err != nil || !ok {
		return nil, nil, err
	}
	head := append([]byte(nil), key[:prefix]...)
	return &moveCandidate{number: int(binary.LittleEndian.Uint64(rest)), size: int64(binary.BigEndian.Uint64(key)),
		mtime: int64(binary.LittleEndian.Uint64(rest[8:])), mode: binary.LittleEndian.Uint32(rest[16:]), name: string(key[prefix:])}, head, nil
}

// findMoves looks among the files that would be deleted for the content of those that
// would be transferred. Only files whose size is on both lists are read.
func (p *syncPlan) findMoves(ctx context.Context, d digester, remotePath func(name string) string) error {
	var byDigest sorter // size, digest, "d" for what would be deleted or "t"
	defer byDigest.close()
	note := func(c *moveCandidate, digest string, side byte) error {
		sum, err := hex.DecodeString(digest)
		if err != nil || len(sum) != digestBytes {
			return nil // an answer without sense moves nothing
		}
		key := binary.BigEndian.AppendUint64(nil, uint64(c.size))
		key = append(append(key, sum...), side)
		return byDigest.add(append(key, c.name...), candidateRest(c.number, c.mtime, c.mode))
	}
	here := func(c *moveCandidate, side byte) error {
		return d.ask(remoteRequest{}, func(*remoteAnswer, error) error {
			digest, err := p.localDigest(ctx, c.name)
			switch {
			case ctx.Err() != nil:
				return errInterrupted
			case err != nil:
				return nil // the transfer says why
			}
			return note(c, digest, side)
		})
	}
	there := func(c *moveCandidate, side byte) error {
		return d.ask(remoteRequest{Do: "hash", Path: remotePath(c.name)}, func(a *remoteAnswer, err error) error {
			if err != nil {
				return nil
			}
			return note(c, a.SHA256, side)
		})
	}
	hashOld, hashNew := there, here
	if !p.o.upload {
		hashOld, hashNew = here, there
	}
	if err := joinErrors(p.oldFiles.sort(), p.newFiles.sort()); err != nil {
		return err
	}
	before, _, err := nextCandidate(&p.oldFiles, 8)
	after, _, err2 := nextCandidate(&p.newFiles, 8)
	if err = joinErrors(err, err2); err != nil {
		return err
	}
	for before != nil && after != nil {
		switch size := max(before.size, after.size); {
		case before.size < size:
			before, _, err = nextCandidate(&p.oldFiles, 8)
		case after.size < size:
			after, _, err = nextCandidate(&p.newFiles, 8)
		default:
			for ; err == nil && before != nil && before.size == size; before, _, err = nextCandidate(&p.oldFiles, 8) {
				if err := hashOld(before, 'd'); err != nil {
					return err
				}
			}
			for ; err == nil && after != nil && after.size == size; after, _, err = nextCandidate(&p.newFiles, 8) {
				if err := hashNew(after, 't'); err != nil {
					return err
				}
			}
		}
		if err != nil {
			return err
		}
	}
	if err := joinErrors(d.settle(), byDigest.sort()); err != nil {
		return err
	}
	const prefix = 8 + digestBytes + 1
	var content string // size and digest of old
	var old []*moveCandidate
	for {
		c, head, err := nextCandidate(&byDigest, prefix)
		if err != nil || c == nil {
			return err
		}
		if is := string(head[:prefix-1]); is != content {
			content, old = is, old[:0]
		}
		if head[prefix-1] == 'd' {
			if len(old) < moveCopies {
				old = append(old, c)
			}
			continue
		}
		if len(old) == 0 {
			continue
		}
		_, base := splitName(c.name)
		at := max(0, slices.IndexFunc(old, func(o *moveCandidate) bool { // rather one that only went elsewhere
			_, was := splitName(o.name)
			return was == base
		}))
		if err := p.move(old[at], c); err != nil {
			return err
		}
		old = slices.Delete(old, at, at+1)
	}
}

// digestBytes is the length of a SHA-256.
const digestBytes = 32

func (p *syncPlan) move(from, to *moveCandidate) error {
	a := &syncStep{kind: stepMove, size: to.size, mtime: to.mtime, mode: to.mode, name: from.name, to: to.name, old: uint32(from.number), new: uint32(to.number)}
	if !p.sameTime(from.mtime, to.mtime) {
		a.flags |= stepTime
	}
	if p.o.preserve && from.mode&0o777 != to.mode&0o777 {
		a.flags |= stepMode
	}
	p.movedGone.set(from.number, true)
	p.movedFiles.set(to.number, true)
	p.bytes -= to.size
	return p.moves.addStep(a)
}
