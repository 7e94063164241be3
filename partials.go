// partials.go knows which interrupted uploads there are, for the metrics: how many,
// and since when the oldest. It is apart from upload.go, which makes them, and from
// house.go, which finds and removes them, because it is told by both, and only
// remembers: a sweep is the truth about one home, and what happens until the next one
// is noted as it happens. Only marked looks at a disk, for a sweep.

package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// partialsKept bounds what is remembered, at some 100 bytes each: so many broken
// uploads are trouble enough, and more of them do not change what is to be done.
const partialsKept = 10_000

// partialSet is the partials of all homes, by file: a rename does not change which it is.
type partialSet struct {
	n     atomic.Int64 // len(files), and
	walks atomic.Int64 // sweeps that run: most changes of names need no lock

	mu     sync.Mutex
	files  map[fileID]partialFile
	looked map[string]bool // users whose home was walked, or made by berth
	since  uint64          // how many changes there were; sweeps compare
	lost   map[fileID]bool // gone while sweeps ran, which may have seen them before
}

type partialFile struct {
	user string
	sec  int64  // when its last byte came, in Unix seconds
	when uint64 // partialSet.since then
}

func newPartialSet() *partialSet {
	return &partialSet{files: map[fileID]partialFile{}, looked: map[string]bool{}, lost: map[fileID]bool{}}
}

// add notes what an upload of this user has left.
func (p *partialSet) add(user string, id fileID, sec int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since++
	delete(p.lost, id)
	p.put(id, partialFile{user, sec, p.since})
}

// put needs mu.
func (p *partialSet) put(id fileID, f partialFile) {
	if len(p.files) < partialsKept {
		p.files[id] = f
		p.n.Store(int64(len(p.files)))
	}
}

// remove notes that a file is a partial no more: resumed, replaced or removed.
func (p *partialSet) remove(id fileID) {
	if p == nil || p.n.Load() == 0 && p.walks.Load() == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, is := p.files[id]; is {
		delete(p.files, id)
		p.n.Store(int64(len(p.files)))
	}
	if p.walks.Load() > 0 && len(p.lost) < partialsKept {
		p.lost[id] = true
	}
}

// know takes over what is known of a user's home from the last run, or that it is new.
func (p *partialSet) know(user string, found map[fileID]int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.looked[user] = true
	for id, sec := range found {
		p.put(id, partialFile{user: user, sec: sec})
	}
}

// walk begins a sweep of a user's home. done takes over what it has found, or (nil)
// that it came to nothing.
func (p *partialSet) walk(user string) (done func(found map[fileID]int64)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.walks.Add(1)
	began := p.since
	return func(found map[fileID]int64) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if found != nil {
			for id, f := range p.files {
				if f.user == user && f.when <= began {
					delete(p.files, id)
				}
			}
			for id, sec := range found {
				if !p.lost[id] {
					p.put(id, partialFile{user: user, sec: sec, when: began})
				}
			}
			p.n.Store(int64(len(p.files)))
			p.looked[user] = true
		}
		if p.walks.Add(-1) == 0 {
			clear(p.lost)
		}
	}
}

// byUser is what is known, for the ledger: an entry for each user whose home was looked at.
func (p *partialSet) byUser() map[string]map[fileID]int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make(map[string]map[fileID]int64, len(p.looked))
	for user := range p.looked {
		all[user] = map[fileID]int64{}
	}
	for id, f := range p.files {
		if of := all[f.user]; of != nil {
			of[id] = f.sec
		}
	}
	return all
}

// report tells how many there are and how old the oldest is; known is false as long as
// no home was looked at. Users who are none any more are forgotten.
func (p *partialSet) report(isUser func(name string) bool) (n int, oldest time.Time, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for user := range p.looked {
		if !isUser(user) {
			delete(p.looked, user)
		}
	}
	first := int64(0)
	for id, f := range p.files {
		if !isUser(f.user) {
			delete(p.files, id)
			continue
		}
		if n++; n == 1 || f.sec < first {
			first = f.sec
		}
	}
	p.n.Store(int64(len(p.files)))
	return n, time.Unix(first, 0), len(p.looked) > 0
}

// partialsText is partials as the ledger keeps them: device, inode and time of each.
func partialsText(found map[fileID]int64) string {
	var words []string
	for id, sec := range found {
		words = append(words, fmt.Sprintf("%d:%d:%d", id.dev, id.ino, sec))
	}
	slices.Sort(words) // the same ones are the same file
	return strings.Join(words, " ")
}

func parsePartials(text string) map[fileID]int64 {
	found := map[fileID]int64{}
	for _, word := range strings.Fields(text) {
		var id fileID
		var sec int64
		if _, err := fmt.Sscanf(word, "%d:%d:%d", &id.dev, &id.ino, &sec); err == nil {
			found[id] = sec
		}
	}
	return found
}

// marked tells whether a name is a marked partial, without opening it: that would cost
// a sweep more than all else. On a disk that knows no marks it is asked once.
func (s *sweep) marked(t *tree, dir int, name string) bool {
	if s.markless[t] {
		return false
	}
	s.procName = append(strconv.AppendInt(append(s.procName[:0], "/proc/self/fd/"...), int64(dir), 10), '/')
	s.procName = append(append(s.procName, name...), 0)
	var b [1]byte
	_, _, e := unix.Syscall6(unix.SYS_LGETXATTR, uintptr(unsafe.Pointer(&s.procName[0])), uintptr(unsafe.Pointer(&partialXattrC[0])),
		uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0)
	if e == unix.ENOTSUP {
		if s.markless == nil {
			s.markless = map[*tree]bool{}
		}
		s.markless[t] = true
	}
	return e == 0
}

// partialXattrC is the name of the mark as the kernel takes it.
var partialXattrC = append([]byte(partialXattr), 0)
