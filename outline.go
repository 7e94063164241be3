package main

import "sync"

// This file has what stands in so many places of the program that its copies, made by
// inlining, would be a noticeable part of the binary. Each is a call here, and none is
// hot: the file is apart because that is all that they have in common.

// mutex is a sync.Mutex whose methods are called, not inlined: the copies in some seven
// hundred places would be 60 KB of the program, and a call is a few nanoseconds.
type mutex struct{ m sync.Mutex }

//go:noinline
func (m *mutex) Lock() { m.m.Lock() }

//go:noinline
func (m *mutex) Unlock() { m.m.Unlock() }

func (m *mutex) TryLock() bool { return m.m.TryLock() }
