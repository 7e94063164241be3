package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	testLimits = limitsConfig{LoginFailures: 10, Ban: duration(10 * time.Minute)}
	peer1      = netip.MustParseAddr("192.0.2.1")
	peer2      = netip.MustParseAddr("192.0.2.2")
)

// authBench is an authenticator on real files that counts the hashes it computes.
type authBench struct {
	*authenticator
	t       *testing.T
	dir     string
	log     *lockedBuffer
	dummies atomic.Int32
	hashes  atomic.Int32 // dummies included
	mu      sync.Mutex
	seen    map[string]int // "method result" to how often observed
}

func newAuthBench(t *testing.T, limits limitsConfig, files map[string]string) *authBench {
	t.Helper()
	b := &authBench{t: t, dir: newUsersDir(t, files), seen: map[string]int{}}
	log, out := textLog()
	b.log = out
	us := mustLoadUsers(t, b.dir, slog.New(slog.DiscardHandler))
	b.authenticator = newAuthenticator(us, limits, log, func(method, result string) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.seen[method+" "+result]++
	})
	b.compute = func(h *passwordHash, password string) bool {
		b.hashes.Add(1)
		if h == b.dummy {
			b.dummies.Add(1) // its cost is real in TestVerifyMatrix only
			return false
		}
		return h.matches(password)
	}
	return b
}

func (b *authBench) login(name, password string, peer netip.Addr) error {
	_, err := b.verify(context.Background(), name, password, peer)
	return err
}

// took is login and how long it kept the client waiting.
func (b *authBench) took(name, password string, peer netip.Addr) (time.Duration, error) {
	start := time.Now()
	err := b.login(name, password, peer)
	return time.Since(start), err
}

func cheapUser(extra string) string { return fmt.Sprintf("password = %q\n%s", cheapHash, extra) }

// TestVerifyMatrix is each scheme with the right, a wrong and no password.
func TestVerifyMatrix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fresh, err := hashPassword("new password")
		if err != nil {
			t.Fatal(err)
		}
		files := map[string]string{"fresh": fmt.Sprintf("password = %q\n", fresh), "none": "", "star": `password = "*"`, "bang": `password = "!"`}
		passwords := map[string]string{"fresh": "new password", "none": "", "star": "*", "bang": "!"}
		for i, h := range foreignHashes {
			name := fmt.Sprintf("user%d", i)
			files[name] = fmt.Sprintf("password = %q\n", h.stored)
			passwords[name] = h.password
		}
		b := newAuthBench(t, limitsConfig{}, files)
		b.compute = func(h *passwordHash, password string) bool { return h.matches(password) }
		for name, right := range passwords {
			for _, password := range []string{right, right + " ", "x", "", strings.Repeat("x", 5000), right + "\x00"} {
				u, err := b.verify(t.Context(), name, password, peer1)
				want := password == right && b.users.get(name).hash != nil
				switch {
				case want && (err != nil || u == nil || u.Name != name):
					t.Errorf("verify(%q, %.20q) = %v, %v; want the user", name, password, u, err)
				case !want && (err != errLogin || u != nil):
					t.Errorf("verify(%q, %.20q) = %v, %v; want errLogin", name, password, u, err)
				}
			}
		}
	})
}

// TestFailuresCannotBeToldApart counts hashes, by fake clocks the waiting as well.
func TestFailuresCannotBeToldApart(t *testing.T) {
	files := map[string]string{
		"ann": cheapUser(""), "off": cheapUser("disabled = true\n"), "far": cheapUser(`allow_from = ["10.0.0.0/8"]`),
		"none": "", "lock": `password = "!"`,
	}
	for _, tt := range []struct{ name, user, password, reason string }{
		{"wrong password", "ann", "wrong", "bad_password"},
		{"empty password", "ann", "", "bad_password"},
		{"long password", "ann", strings.Repeat(cheapPassword, 1000), "bad_password"},
		{"unknown user", "bob", cheapPassword, "unknown_user"},
		{"no name", "", cheapPassword, "unknown_user"},
		{"unsafe name", "../users.d/ann", cheapPassword, "unknown_user"},
		{"disabled", "off", cheapPassword, "disabled"},
		{"not allowed from there", "far", cheapPassword, "not_allowed"},
		{"no password at all", "none", "", "bad_password"},
		{"locked", "lock", "!", "bad_password"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newAuthBench(t, testLimits, files)
				took, err := b.took(tt.user, tt.password, peer1)
				if err != errLogin || took != firstDelay || b.hashes.Load() != 1 {
					t.Errorf("got %v after %v and %d hashes; want errLogin after %v and 1", err, took, b.hashes.Load(), firstDelay)
				}
				want := "reason=" + tt.reason + "\n"
				if got := b.log.String(); !strings.HasPrefix(got, "level=WARN msg=\"login failed\" user=") || !strings.HasSuffix(got, want) || strings.Count(got, "\n") != 1 {
					t.Errorf("log = %q; want one line ending in %q", got, want)
				}
				if b.seen["password failed"] != 1 {
					t.Errorf("observed %v; want one failure", b.seen)
				}
			})
		})
	}
}

// TestSlowHashHidesInTheDelay: a hash that takes long does not add to the delay.
func TestSlowHashHidesInTheDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newAuthBench(t, testLimits, map[string]string{"ann": cheapUser("")})
		b.compute = func(*passwordHash, string) bool {
			time.Sleep(700 * time.Millisecond)
			return false
		}
		if took, err := b.took("ann", "wrong", peer1); took != firstDelay || err != errLogin {
			t.Errorf("answered %v after %v; want errLogin after %v", err, took, firstDelay)
		}
	})
}

func TestDelayDoubles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newAuthBench(t, testLimits, map[string]string{"ann": cheapUser("")})
		for i, want := range []time.Duration{1, 2, 4, 8, 8} {
			if took, _ := b.took("ann", "wrong", peer1); took != want*time.Second {
				t.Errorf("failure %d took %v; want %v", i+1, took, want*time.Second)
			}
		}
		// The user's failures count from anywhere, the address's for any user.
		if took, _ := b.took("ann", "wrong", peer2); took != 8*time.Second {
			t.Errorf("from elsewhere it took %v; want 8s", took)
		}
		if took, _ := b.took("bob", "wrong", peer1); took != 8*time.Second {
			t.Errorf("as another it took %v; want 8s", took)
		}
		// The right password is not delayed by what others did.
		if took, err := b.took("ann", cheapPassword, peer2); took != 0 || err != nil {
			t.Errorf("the right password: %v after %v; want success at once", err, took)
		}
		time.Sleep(11 * time.Minute)
		if took, _ := b.took("ann", "wrong", peer1); took != time.Second {
			t.Errorf("after the window it took %v; want 1s", took)
		}
	})
}

func TestDelayEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newAuthBench(t, testLimits, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err := b.verify(ctx, "ann", "x", peer1)
		if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != 300*time.Millisecond {
			t.Errorf("got %v after %v; want the context's end", err, took)
		}
	})
}

func TestBan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newAuthBench(t, limitsConfig{LoginFailures: 3, Ban: duration(10 * time.Minute)}, map[string]string{"ann": cheapUser("")})
		for range 3 {
			if err := b.login("ann", "wrong", peer1); err != errLogin {
				t.Fatalf("got %v; want errLogin", err)
			}
		}
		hashes := b.hashes.Load()
		took, err := b.took("ann", cheapPassword, peer1)
		var be bannedError
		if !errors.Is(err, errBanned) || !errors.As(err, &be) || be.left <= 9*time.Minute || be.left > 10*time.Minute || took != 0 || b.hashes.Load() != hashes {
			t.Errorf("the right password while banned: %v after %v and %d hashes; want a ban, at once, without a hash", err, took, b.hashes.Load()-hashes)
		}
		if _, yes := b.banned(netip.AddrFrom16(peer1.As16())); !yes {
			t.Error("the IPv4-mapped form of the address is not banned")
		}
		if err := b.login("ann", cheapPassword, peer2); err != nil || b.bans() != 1 {
			t.Errorf("another address: %v, %d bans; want success, 1", err, b.bans())
		}
		if got := b.log.String(); !strings.Contains(got, `msg="address banned" addr=192.0.2.1/32 dur=10m0s`) || !strings.Contains(got, "reason=banned") {
			t.Errorf("log:\n%s\nwant the ban and the try after it", got)
		}
		if b.seen["password banned"] != 1 || b.seen["password failed"] != 3 || b.seen["password ok"] != 1 {
			t.Errorf("observed %v", b.seen)
		}
		time.Sleep(be.left - time.Millisecond)
		if _, yes := b.banned(peer1); !yes {
			t.Error("the ban ended early")
		}
		time.Sleep(time.Millisecond)
		if err := b.login("ann", cheapPassword, peer1); err != nil || b.bans() != 0 {
			t.Errorf("after the ban: %v, %d bans; want success, 0", err, b.bans())
		}
	})
}

func TestBanCases(t *testing.T) {
	fail := func(name, password string, peers ...string) func(*authBench) {
		return func(b *authBench) {
			for _, p := range peers {
				var a netip.Addr
				if p != "" {
					a = netip.MustParseAddr(p)
				}
				b.login(name, password, a)
			}
		}
	}
	for _, tt := range []struct {
		name  string
		do    []func(*authBench)
		check string
		want  bool
	}{
		{"IPv6 counts by /64", []func(*authBench){fail("ann", "x", "2001:db8::1", "2001:db8::2", "2001:db8::ffff:3")}, "2001:db8::4", true},
		{"another /64 is another", []func(*authBench){fail("ann", "x", "2001:db8::1", "2001:db8:0:1::2", "2001:db8:0:2::3")}, "2001:db8::1", false},
		{"zones do not hide", []func(*authBench){fail("ann", "x", "fe80::1%eth0", "fe80::1%eth1", "fe80::1%eth2")}, "fe80::1", true},
		{"mapped is IPv4", []func(*authBench){fail("ann", "x", "192.0.2.1", "::ffff:192.0.2.1", "192.0.2.1")}, "192.0.2.1", true},
		{"IPv4 counts alone", []func(*authBench){fail("ann", "x", "192.0.2.1", "192.0.2.2", "192.0.2.3")}, "192.0.2.1", false},
		{"loopback is never banned", []func(*authBench){fail("ann", "x", "127.0.0.1", "::1", "127.0.0.2", "127.0.0.1", "::1")}, "127.0.0.1", false},
		{"nor is a unix socket", []func(*authBench){fail("ann", "x", "", "", "", "")}, "", false},
		{"different names count together", []func(*authBench){fail("ann", "x", "192.0.2.1"), fail("bob", "x", "192.0.2.1"), fail("carl", "x", "192.0.2.1")}, "192.0.2.1", true},
		{"a success takes back its own", []func(*authBench){fail("ann", "x", "192.0.2.1", "192.0.2.1"), fail("ann", cheapPassword, "192.0.2.1"), fail("ann", "x", "192.0.2.1", "192.0.2.1")}, "192.0.2.1", false},
		{"and no other's", []func(*authBench){fail("bob", "x", "192.0.2.1", "192.0.2.1"), fail("ann", cheapPassword, "192.0.2.1"), fail("bob", "x", "192.0.2.1")}, "192.0.2.1", true},
		{"Explorer's anonymous is free at first", []func(*authBench){fail("anonymous", "x@y", "192.0.2.1", "192.0.2.1", "192.0.2.1"), fail("ann", "x", "192.0.2.1", "192.0.2.1")}, "192.0.2.1", false},
		{"but not for ever", []func(*authBench){fail("anonymous", "x@y", "192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.1")}, "192.0.2.1", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newAuthBench(t, limitsConfig{LoginFailures: 3, Ban: duration(10 * time.Minute)}, map[string]string{"ann": cheapUser("")})
				for _, do := range tt.do {
					do(b)
				}
				var peer netip.Addr
				if tt.check != "" {
					peer = netip.MustParseAddr(tt.check)
				}
				if _, got := b.banned(peer); got != tt.want {
					t.Errorf("banned(%s) = %v; want %v\n%s", tt.check, got, tt.want, b.log)
				}
			})
		})
	}
}

func TestNoBansWhenOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, limits := range []limitsConfig{{LoginFailures: 0, Ban: duration(time.Minute)}, {LoginFailures: 3}} {
			b := newAuthBench(t, limits, nil)
			for range 20 {
				b.login("ann", "x", peer1)
			}
			if b.bans() != 0 {
				t.Errorf("limits %+v: %d bans; want none", limits, b.bans())
			}
			b.setLimits(limitsConfig{LoginFailures: 1, Ban: duration(time.Minute)})
			if b.login("ann", "x", peer1); b.bans() != 1 {
				t.Errorf("after setLimits %d bans; want 1", b.bans())
			}
		}
	})
}

// TestParallelGuessesEndInABan: many connections cannot try many passwords before the
// first failure is counted.
func TestParallelGuessesEndInABan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newAuthBench(t, limitsConfig{LoginFailures: 3, Ban: duration(10 * time.Minute)}, map[string]string{"ann": cheapUser("")})
		b.gate = newHashGate(2)
		var computed atomic.Int32
		b.compute = func(*passwordHash, string) bool {
			computed.Add(1)
			time.Sleep(20 * time.Millisecond)
			return false
		}
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { b.login("ann", "wrong", peer1) })
		}
		wg.Wait()
		if n := computed.Load(); n > 3+2 {
			t.Errorf("%d guesses were computed; want at most 5", n)
		}
	})
}

func TestRememberedPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newAuthBench(t, testLimits, map[string]string{"ann": cheapUser(""), "bob": cheapUser("")})
		hashes := func(want int32, why string) {
			t.Helper()
			if got := b.hashes.Swap(0); got != want {
				t.Errorf("%s: %d hashes; want %d", why, got, want)
			}
		}
		ok := func(name string) {
			t.Helper()
			if err := b.login(name, cheapPassword, peer1); err != nil {
				t.Errorf("login(%q): %v", name, err)
			}
		}
		ok("ann")
		hashes(1, "first login")
		ok("ann")
		ok("ann")
		hashes(0, "within five minutes")
		ok("bob")
		hashes(1, "another user with the same password and hash")
		b.login("ann", cheapPassword+"x", peer1)
		hashes(1, "a wrong password")
		writeUser(t, b.dir, "ann", cheapUser("disabled = true\n"))
		if err := b.login("ann", cheapPassword, peer1); err != errLogin {
			t.Errorf("a disabled user: %v; want errLogin", err)
		}
		hashes(1, "a disabled user")
		other, err := hashPassword("other")
		if err != nil {
			t.Fatal(err)
		}
		writeUser(t, b.dir, "ann", fmt.Sprintf("password = %q\n", other))
		if err := b.login("ann", cheapPassword, peer1); err != errLogin {
			t.Errorf("the old password: %v; want errLogin", err)
		}
		hashes(1, "a changed password")
		time.Sleep(rememberTime)
		ok("bob")
		hashes(1, "after five minutes")
	})
}

func TestAllowed(t *testing.T) {
	nets := func(list ...string) (out []network) {
		for _, s := range list {
			var n network
			if err := n.UnmarshalText([]byte(s)); err != nil {
				t.Fatal(err)
			}
			out = append(out, n)
		}
		return out
	}
	a := newAuthenticator(nil, testLimits, slog.New(slog.DiscardHandler), nil)
	for _, tt := range []struct {
		from []network
		peer string
		want bool
	}{
		{nil, "192.0.2.1", true},
		{nil, "", true},
		{nets("192.0.2.0/24"), "192.0.2.1", true},
		{nets("192.0.2.0/24"), "::ffff:192.0.2.1", true},
		{nets("192.0.2.0/24"), "198.51.100.1", false},
		{nets("192.0.2.0/24", "2001:db8::/32"), "2001:db8::1", true},
		{nets("fe80::/10"), "fe80::1%eth0", true},
		{nets("192.0.2.0/24"), "", false},
		{nets("127.0.0.0/8"), "", true},
		{nets("::1"), "", true},
		{[]network{{}}, "192.0.2.1", false},
	} {
		var peer netip.Addr
		if tt.peer != "" {
			peer = netip.MustParseAddr(tt.peer)
		}
		if got := a.allowed(&user{AllowFrom: tt.from}, peer); got != tt.want {
			t.Errorf("allowed(%v, %q) = %v; want %v", tt.from, tt.peer, got, tt.want)
		}
		if a.allowed(&user{AllowFrom: tt.from, Disabled: true}, peer) {
			t.Errorf("allowed(%v, %q) lets a disabled user in", tt.from, tt.peer)
		}
	}
}

func TestFailureLogLine(t *testing.T) {
	log, out := textLog()
	a := newAuthenticator(nil, testLimits, log, nil)
	a.fail("ann", netip.MustParseAddr("::ffff:192.0.2.1"), "password", reasonPassword)
	a.fail("x\r\n\x1b[31m\" reason=ok", netip.MustParseAddr("fe80::1%eth0"), "certificate", reasonNotAllowed)
	a.fail(strings.Repeat("n", 4000), netip.Addr{}, "local", reasonDisabled)
	want := `level=WARN msg="login failed" user=ann addr=192.0.2.1 method=password reason=bad_password
level=WARN msg="login failed" user="x\r\n\x1b[31m\" reason=ok" addr=fe80::1%eth0 method=certificate reason=not_allowed
level=WARN msg="login failed" user=` + strings.Repeat("n", 64) + ` addr=local method=local reason=disabled
`
	if out.String() != want {
		t.Errorf("log:\n%swant:\n%s", out, want)
	}
}

func TestHashGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newHashGate(4)
		for memory, want := range map[int]int{0: 0, 4: 1, argonMemory: 1, argonMemory + 1: 2, 64 << 10: 4, maxArgonMemory: 4} {
			if got := g.weight(memory); got != want {
				t.Errorf("weight(%d) = %d; want %d", memory, got, want)
			}
		}
		var now, most atomic.Int32
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				weight := i%4 + 1
				if err := g.enter(t.Context(), weight); err != nil {
					t.Error(err)
					return
				}
				if n := now.Add(int32(weight)); n > most.Load() {
					most.Store(n)
				}
				time.Sleep(time.Second)
				now.Add(int32(-weight))
				g.leave(weight)
			})
		}
		wg.Wait()
		if most.Load() != 4 {
			t.Errorf("at most %d slots were taken at once; want 4", most.Load())
		}
		if err := g.enter(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.enter(ctx, 2); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("enter = %v; want the context's end", err)
		}
		if err := g.enter(t.Context(), 1); err != nil {
			t.Errorf("the slots of a cancelled wait are lost: %v", err)
		}
	})
}

func TestHashQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newAuthBench(t, limitsConfig{}, map[string]string{"ann": cheapUser("")})
		b.gate = newHashGate(1)
		b.gate.slots <- struct{}{} // someone computes
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range maxHashQueue {
			wg.Go(func() { b.verify(ctx, "ann", fmt.Sprint("x", i), peer1) })
		}
		synctest.Wait()
		if err := b.login("ann", "x", peer2); err != errAuthBusy || b.seen["password busy"] != 1 {
			t.Errorf("with a full queue: %v, observed %v; want errAuthBusy", err, b.seen)
		}
		cancel()
		wg.Wait()
		b.gate.leave(1)
		if err := b.login("ann", cheapPassword, peer2); err != nil {
			t.Errorf("after the queue: %v; want success", err)
		}
	})
}

// All who came while the daemon restarted log in at once, and it remembers no password yet.
func TestOnePasswordIsHashedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newAuthBench(t, limitsConfig{}, map[string]string{"ann": cheapUser("")})
		time.Sleep(settleTime) // a stamp younger than that is not trusted
		b.gate = newHashGate(1)
		b.gate.slots <- struct{}{} // someone computes
		var wg sync.WaitGroup
		for range 4 * maxHashQueue {
			wg.Go(func() {
				if err := b.login("ann", cheapPassword, peer1); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		b.gate.leave(1)
		wg.Wait()
		if n := b.hashes.Load(); n != 1 || len(b.computing) != 0 {
			t.Errorf("%d hashes, %d under way; want 1 and none", n, len(b.computing))
		}
		// Those with one wrong password do not wait for each other's delay.
		begun := time.Now()
		for range 20 {
			wg.Go(func() { b.login("ann", "wrong", peer1) })
		}
		wg.Wait()
		if took := time.Since(begun); took > maxDelay+time.Second {
			t.Errorf("20 failures at once took %v; want at most %v", took, maxDelay)
		}
	})
}

func TestRecentMapForgetsTheLeastRecent(t *testing.T) {
	m := newRecentMap[int, string](3)
	for i := range 3 {
		*m.touch(i) = fmt.Sprint(i)
	}
	m.get(0)
	*m.touch(3) = "3"
	if m.get(1) != nil || m.get(0) == nil || m.get(2) == nil || m.get(3) == nil || len(m.items) != 3 || m.order.Len() != 3 {
		t.Errorf("after four of three: %v", m.items)
	}
}

func TestFailureTablesAreBounded(t *testing.T) {
	a := newAuthenticator(nil, testLimits, slog.New(slog.DiscardHandler), nil)
	addr := netip.MustParseAddr("10.0.0.0")
	for i := range maxFailureRecords + 100 {
		addr = addr.Next()
		a.fail(fmt.Sprintf("user%d", i), addr, "password", reasonUnknown)
		a.fail(fmt.Sprintf("user%d", i), peer1, "password", reasonUnknown)
	}
	if n := len(a.addresses.items); n != maxFailureRecords {
		t.Errorf("%d addresses are kept; want %d", n, maxFailureRecords)
	}
	if n := len(a.names.items); n != maxFailureRecords {
		t.Errorf("%d names are kept; want %d", n, maxFailureRecords)
	}
	if n := len(a.addresses.get(failuresOf(peer1, "password")).byName); n > maxFailureNames+1 {
		t.Errorf("%d names are kept of one address; want at most %d", n, maxFailureNames+1)
	}
}

func TestLoginsAtOnce(t *testing.T) {
	b := newAuthBench(t, limitsConfig{}, map[string]string{"ann": cheapUser(""), "bob": cheapUser("")})
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // failures answer at once
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 30 {
				name := [...]string{"ann", "bob", "eve"}[(i+j)%3]
				u, err := b.verify(context.Background(), [...]string{"ann", "bob"}[j%2], cheapPassword, peer1)
				if err != nil || u == nil {
					t.Errorf("the right password: %v", err)
				}
				if u, err := b.verify(ctx, name, "wrong", peer2); u != nil || err == nil {
					t.Errorf("verify(%q, wrong) = %v, %v", name, u, err)
				}
				b.bans()
				b.banned(peer2)
				b.setLimits(limitsConfig{})
			}
		})
	}
	for i := range 10 {
		writeUser(t, b.dir, "ann", cheapUser(fmt.Sprintf("sessions = %d\n", i+1)))
	}
	wg.Wait()
}

func BenchmarkRememberedLogin(b *testing.B) {
	dir := b.TempDir()
	us, err := loadUsers(dir, testStateDir, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	writeUser(b, dir, "ann", cheapUser(""))
	a := newAuthenticator(us, testLimits, slog.New(slog.DiscardHandler), nil)
	time.Sleep(settleTime) // a stamp younger than that is not trusted
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.verify(context.Background(), "ann", cheapPassword, peer1); err != nil {
			b.Fatal(err)
		}
	}
}
