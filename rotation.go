// rotation.go makes room in a full home whose user has when_full = "rotate": by removing
// its oldest complete files, when an upload asks for it. It is apart from house.go, whose
// loop has no part in it: the session that wants the room does the work, and waits.

package main

import (
	"container/heap"
	"errors"
	"time"
)

var errNothingOld = errors.New("no old file that could make room")

// A rotation has what is known of a home's oldest files, oldest first.
type rotation struct {
	mu   mutex // held while room is made
	list []found
	used time.Time

	// When so much could not be had: for a moment nobody need look again.
	barren time.Time
	wanted quota
}

func (h *housekeeper) rotation(id fileID) *rotation {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.rotations[id]
	if r == nil {
		r = &rotation{}
		h.rotations[id] = r
	}
	r.used = time.Now()
	return r
}

// forgetRotations gives up what was not used of late: who needs it again will
// find it again.
func (h *housekeeper) forgetRotations(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, r := range h.rotations {
		if now.Sub(r.used) > ledgerEvery && r.mu.TryLock() {
			delete(h.rotations, id)
			r.mu.Unlock()
		}
	}
}

// makeRoom removes a user's oldest complete files until his quota has room for
// so much more. It removes nothing if that would not be enough.
func (h *housekeeper) makeRoom(j *jail, bytes, files int64) error {
	q := j.key.quota
	if q.bytes > 0 && bytes > q.bytes || q.files > 0 && files > q.files {
		return errNothingOld
	}
	r := h.rotation(j.home.id)
	r.mu.Lock()
	defer r.mu.Unlock()
	walked := false
	for !j.balance.has(q, bytes, files) {
		if err := h.ctx.Err(); err != nil {
			return err
		}
		if len(r.list) == 0 {
			if walked || time.Since(r.barren) < sweepMin && bytes >= r.wanted.bytes && files >= r.wanted.files {
				return errNothingOld
			}
			walked = true
			s := &sweep{j: j, oldest: keptOldest, pace: h.ctx.Err}
			if err := s.walk(j.home); err != nil {
				return err
			}
			if !j.balance.has(q, bytes-s.spare.bytes, files-s.spare.files) {
				r.barren, r.wanted = time.Now(), quota{bytes, files}
				return errNothingOld
			}
			r.list = make([]found, len(s.old))
			for i := len(r.list) - 1; i >= 0; i-- {
				r.list[i] = heap.Pop(&s.old).(found)
			}
			continue
		}
		f := r.list[0]
		r.list = r.list[1:]
		if f.t = j.home; j.removeFound(&f, true) == nil {
			walked = false
			h.log.Info("file removed", "user", j.key.user, "path", "/"+f.rel, "bytes", f.size, "modified", time.Unix(f.sec, f.nsec).UTC(), "result", "rotated")
		}
	}
	return nil
}
