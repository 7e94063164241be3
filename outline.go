package main

import (
	"fmt"
	"sync"
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
