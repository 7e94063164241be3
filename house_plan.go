// house_plan.go looks at each home for the first time, so that its ledger is open and its
// first sweep is planned. It is apart from house.go because a look may never end, on a
// disk whose server is gone: it has what keeps that from the homes behind it.

package main

import (
	"cmp"
	"hash/fnv"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

const (
	looksAtOnce  = 4               // a disk does not answer faster to more
	lookStuck    = 5 * time.Second // then a look hangs: longer than disks take to spin up, most often
	looksHungDir = 4               // of homes in one directory; then no more are begun there, as they lie on one disk
	looksHung    = 32              // in all; each holds a thread
)

// A homeLook is a look at a home that has not ended.
type homeLook struct {
	u     *user
	since time.Time
	told  bool // that it hangs
}

func openHome(home string) (int, error) {
	return unix.Open(home, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// planAll plans the first sweep of everybody who has none planned, and is not disabled:
// what is his is left alone until he is enabled, so that its disk can be unmounted. It
// returns when every look has ended or hangs. Who was left out comes in a minute.
func (h *housekeeper) planAll() {
	places := make(chan struct{}, looksAtOnce)
	t := time.NewTimer(lookStuck)
	defer t.Stop()
	// place waits for one; false: all of them hang, and there are others instead.
	place := func() bool {
		t.Reset(lookStuck)
		select {
		case places <- struct{}{}:
			return true
		case <-h.ctx.Done():
		case <-t.C:
			places = make(chan struct{}, looksAtOnce)
		}
		return false
	}
	for _, u := range h.users.all() {
		h.mu.Lock()
		if u.Disabled {
			delete(h.due, u.Name)
			h.urgent[u.Name] = true // others may have written there, by a share as well
		}
		_, planned := h.due[u.Name]
		h.mu.Unlock()
		if planned || u.Disabled {
			continue
		}
		for !place() {
			if h.ctx.Err() != nil {
				return
			}
		}
		if !h.beginLook(u) {
			<-places
			continue
		}
		go func(places chan struct{}) {
			h.plan(u)
			h.mu.Lock()
			delete(h.looks, u.Name)
			h.mu.Unlock()
			<-places
		}(places)
	}
	for range looksAtOnce { // until all have ended
		if !place() {
			return
		}
	}
}

// beginLook notes that a look at a user's home begins, unless one hangs, or too many do.
func (h *housekeeper) beginLook(u *user) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, looking := h.looks[u.Name]; looking {
		return false
	}
	now, dir := time.Now(), path.Dir(u.Home)
	all, beside := 0, 0
	for _, l := range h.looks {
		if now.Sub(l.since) >= lookStuck {
			if all++; path.Dir(l.u.Home) == dir {
				beside++
			}
		}
	}
	if all >= looksHung || beside >= looksHungDir {
		return false
	}
	h.looks[u.Name] = &homeLook{u: u, since: now}
	return true
}

// plan opens a user's balance, if his home is there, and plans his first sweep:
// at once where the ledger is in doubt, else some time within a day.
func (h *housekeeper) plan(u *user) {
	fd, err := h.openHome(u.Home)
	h.mu.Lock()
	if delete(h.noHome, u.Name); err == unix.ENOENT {
		h.noHome[u.Name] = u.Home
	}
	h.mu.Unlock()
	if err != nil {
		return
	}
	if h.ctx.Err() != nil { // it ended while this hung
		unix.Close(fd)
		return
	}
	dir := os.NewFile(uintptr(fd), u.Home)
	defer dir.Close()
	var home entry
	if fstat(dir, &home) != nil {
		return
	}
	later := cmp.Or(h.config().Transfer.PartialTTL.std(), countEvery)
	if u.Expire > 0 {
		later = min(later, sweepMin)
	}
	if u.Quota != "filesystem" {
		if h.ledger.hold(int(dir.Fd()), home.id(), u.Home) != nil {
			return // and asked for again in a minute
		}
		b := h.ledger.open(u.Name, u.Home, home.id(), birth(dir), false)
		h.mu.Lock()
		b.mu.Lock()
		if !b.exact || h.urgent[u.Name] {
			later = 0
		}
		b.mu.Unlock()
		h.mu.Unlock()
	} else {
		h.ledger.mixed(int(dir.Fd()), home.id(), u.Name, u.Home)
		if !h.ledger.clean {
			later = 0
		}
	}
	if later > 0 {
		hash := fnv.New32a()
		hash.Write([]byte(u.Name))
		later = min(later, countEvery) - time.Duration(hash.Sum32())%(min(later, countEvery)/2+1)
	} else {
		h.mu.Lock()
		h.urgent[u.Name] = true
		h.mu.Unlock()
	}
	h.attend(u.Name, time.Now().Add(later))
}
