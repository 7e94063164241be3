// partials.go knows which interrupted uploads there are, for the metrics: how many,
// and since when the oldest. It is apart from upload.go, which makes them, and from
// house.go, which finds and removes them, because it is told by both, and only
// remembers: a sweep is the truth about one home, and what happens until the next one
// is noted as it happens. Only marked looks at a disk, for a sweep.

package main

import (
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// partialsKept bounds what is remembered, at some 100 bytes each: so many broken
// uploads are trouble enough, and more of them do not change what is to be done.
const partialsKept = 10_000

// partialSet is the partials of all homes, by file: a rename does not change which it is.
type partialSet struct {
	n     atomic.Int64 // len(files), and
	walks atomic.Int64 // sweeps that run: most changes of names need no lock

	mu     mutex
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

//go:noinline
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
//
//go:noinline
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

// know takes over what the ledger has kept of a user's home since the last run, or that
// the home is new.
func (p *partialSet) know(user, kept string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.looked[user] = true
	for _, word := range strings.Fields(kept) {
		var n [3]uint64
		var err error
		parts := strings.SplitN(word, ":", len(n))
		for i := 0; i < len(parts) && err == nil; i++ {
			n[i], err = strconv.ParseUint(parts[i], 10, 63)
		}
		if err == nil && len(parts) == len(n) {
			p.put(fileID{n[0], n[1]}, partialFile{user: user, sec: int64(n[2])})
		}
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

// byUser is what is known, as the ledger keeps it: device, inode and time of each file,
// and nothing but the user where there is none.
func (p *partialSet) byUser() map[string][]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make(map[string][]string, len(p.looked))
	for user := range p.looked {
		all[user] = nil
	}
	for id, f := range p.files {
		if words, looked := all[f.user]; looked {
			all[f.user] = append(words, fmt.Sprintf("%d:%d:%d", id.dev, id.ino, f.sec))
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

// marked tells whether a name is a marked partial, without opening it: that would cost
// a sweep more than all else. On a disk that knows no marks it is asked once.
func (s *sweep) marked(t *tree, dir int, name string) bool {
	if s.markless[t] {
		return false
	}
	var b [1]byte
	_, e := unix.Lgetxattr("/proc/self/fd/"+strconv.Itoa(dir)+"/"+name, partialXattr, b[:])
	if e == unix.ENOTSUP {
		if s.markless == nil {
			s.markless = map[*tree]bool{}
		}
		s.markless[t] = true
	}
	return e == nil
}
