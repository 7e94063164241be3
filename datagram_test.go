package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"
	"unsafe"

	"golang.org/x/sys/unix"
)

var (
	datagramTestTime = time.Date(2026, 3, 4, 5, 6, 7, 89000, time.UTC)
	datagramTestInfo = helloInfo{
		Name: "box", Version: "1.2.3", Ports: helloPorts{Control: 2121, TLS: 990},
		Fingerprint: "sha256:" + strings.Repeat("0123456789abcdef", 4),
	}
	farAway = netip.MustParseAddrPort("203.0.113.9:40000")
)

// datagramCounts is a place for a service to count to.
type datagramCounts struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *datagramCounts) add(service, result string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[service+" "+result]++
}

func (c *datagramCounts) get(key string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[key]
}

// ask puts a question to d as if it had come from src to port 2121.
func (d *datagramService) ask(dst, req []byte, src netip.AddrPort) (answer []byte, service string, ok bool) {
	return d.answer(dst, &datagramQuestion{text: req, src: src, own: 2121, at: d.now()})
}

// soon waits for cond: an answer is counted after it was sent, and may be read
// before that.
func soon(cond func() bool) bool {
	for range 10_000 {
		if cond() {
			return true
		}
		time.Sleep(time.Millisecond)
	}
	return false
}

func newTestDatagramService() (*datagramService, *datagramCounts) {
	counts := &datagramCounts{}
	d := newDatagramService(func() helloInfo { return datagramTestInfo }, counts.add, slog.New(slog.DiscardHandler))
	d.now = func() time.Time { return datagramTestTime }
	d.rate = newDatagramLimiter(datagramTestTime)
	return d, counts
}

func TestAnswerDatagram(t *testing.T) {
	d, _ := newTestDatagramService()
	ctime := datagramTestTime.Local().Format("Mon Jan _2 15:04:05 2006") + "\n"
	const rfc3339 = "2026-03-04T05:06:07.000089Z\n"
	hello, err := json.Marshal(datagramTestInfo)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ req, service, want string }{
		{"", "rfc868", "\xedR<?"},
		{"time", "time", ctime},
		{"TIME\r\n", "time", ctime},
		{"time\x00", "time", ctime},
		{"\n", "time", ctime},
		{"date", "time", ctime},
		{"what o'clock is it?", "time", ctime},
		{"zeit, grüß Gott", "time", ctime},
		{"time zone", "time", ctime},
		{"timer", "time", ctime},
		{"echos", "time", ctime},
		{"time rfc3339", "rfc3339", rfc3339},
		{"time  RFC3339\n", "rfc3339", rfc3339},
		{"echo hello  world\n", "echo", "hello  world\n"},
		{"echo  two", "echo", " two"},
		{"echo", "echo", ""},
		{"echo\n", "echo", "\n"},
		{"Echo \x00\xff\x80", "echo", "\x00\xff\x80"},
		{"upper hello, World 1\n", "upper", "HELLO, WORLD 1\n"},
		{"upper grüße", "upper", "GRÜßE"},
		{"upper \u0250\u0131\xff\xc3", "upper", "\u0250I\xff\xc3"}, // U+2C6F would be longer, I is shorter
		{"hello", "hello", string(hello) + "\n"},
		{"hello" + strings.Repeat("\x00", 100), "hello", string(hello) + "\n"},

		// Not requests: answers of services like this one, and other protocols.
		{ctime, "", ""},
		{strings.ToUpper(ctime), "", ""},
		{"you said: " + ctime, "", ""},
		{rfc3339, "", ""},
		{"\xed\x51\x80\xff", "", ""},
		{"\x01\x02abc", "", ""},
		{"abc\x00def", "", ""},
		{"\x1b[2J", "", ""},
	} {
		got, service := answerDatagram(nil, []byte(tt.req), datagramTestTime, d.hello)
		if service != tt.service || string(got) != tt.want {
			t.Errorf("answerDatagram(%q) = %q, %q; want %q, %q", tt.req, got, service, tt.want, tt.service)
		}
	}
}

func TestDatagramSourceAllowed(t *testing.T) {
	const own = 2121
	for _, tt := range []struct {
		src  string
		want bool
	}{
		{"192.0.2.1:40000", true},
		{"192.0.2.1:1024", true},
		{"192.0.2.1:123", true},
		{"192.0.2.1:1023", false},
		{"192.0.2.1:19", false},
		{"192.0.2.1:7", false},
		{"192.0.2.1:0", false},
		{"192.0.2.1:2121", false},
		{"127.0.0.1:2121", false},
		{"127.0.0.1:37", false},
		{"[2001:db8::1]:40000", true},
		{"[fe80::1%lo]:40000", true},
		{"[::1]:2121", false},
		{"0.0.0.0:40000", false},
		{"[::]:40000", false},
		{"224.0.0.1:40000", false},
		{"255.255.255.255:40000", false},
		{"240.0.0.1:40000", false},
		{"[ff02::1]:40000", false},
	} {
		src := netip.MustParseAddrPort(tt.src)
		if got := datagramSourceAllowed(src.Addr(), src.Port(), own); got != tt.want {
			t.Errorf("datagramSourceAllowed(%s) = %v; want %v", tt.src, got, tt.want)
		}
	}
	d, counts := newTestDatagramService()
	mapped := netip.MustParseAddrPort("[::ffff:224.0.0.1]:40000")
	if _, _, ok := d.ask(nil, []byte("time"), mapped); ok || counts.get("none refused") != 1 {
		t.Error("an IPv4-mapped multicast source was answered")
	}
}

// Off the machine hello has to be paid for with padding; on it, not.
func TestDatagramHelloNeedsPadding(t *testing.T) {
	d, counts := newTestDatagramService()
	if _, _, ok := d.ask(nil, []byte("hello"), farAway); ok || counts.get("hello malformed") != 1 {
		t.Error("a bare hello from another machine was answered")
	}
	padded := append([]byte("hello "), make([]byte, 100)...)
	if _, service, ok := d.ask(nil, padded, farAway); !ok || service != "hello" {
		t.Error("a padded hello from another machine was not answered")
	}
	if _, _, ok := d.ask(nil, []byte("hello"), netip.MustParseAddrPort("[::ffff:127.0.0.1]:40000")); !ok {
		t.Error("a bare hello from this machine was not answered")
	}
}

func TestDatagramHelloFollowsChanges(t *testing.T) {
	d, _ := newTestDatagramService()
	info := datagramTestInfo
	d.info = func() helloInfo { return info }
	first := d.hello()
	info.Fingerprint = "sha256:new"
	var got helloInfo
	if err := json.Unmarshal(d.hello(), &got); err != nil || got != info {
		t.Errorf("after a change hello is %+v, %v; before it was %s", got, err, first)
	}
}

func TestDatagramRateLimit(t *testing.T) {
	d, counts := newTestDatagramService()
	// One seed in 4096 has both networks share a bucket, as it may.
	for d.rate.slot(netip.MustParseAddr("203.0.113.1")) == d.rate.slot(netip.MustParseAddr("2001:db8:1:2::1")) {
		d.rate = newDatagramLimiter(datagramTestTime)
	}
	now := datagramTestTime
	d.now = func() time.Time { return now }
	burst := func(src string) (answered int) {
		for range 2 * datagramBurst {
			if _, _, ok := d.ask(nil, []byte("time"), netip.MustParseAddrPort(src)); ok {
				answered++
			}
		}
		return answered
	}
	for _, tt := range []struct {
		step time.Duration
		src  string
		want int
	}{
		{0, "203.0.113.1:5000", datagramBurst},
		{0, "203.0.113.200:6000", 0},             // the same /24
		{0, "[::ffff:203.0.113.3]:6000", 0},      // and the same again
		{0, "127.0.0.1:5000", 2 * datagramBurst}, // this machine is not limited
		{time.Second, "203.0.113.7:5000", datagramRate},
		{time.Hour, "203.0.113.7:5000", datagramBurst},
		{0, "[2001:db8:1:2::1]:5000", datagramBurst},
		{0, "[2001:db8:1:2:ffff::1]:5000", 0}, // the same /64
	} {
		now = now.Add(tt.step)
		if got := burst(tt.src); got != tt.want {
			t.Errorf("after %v from %s: %d answered; want %d", tt.step, tt.src, got, tt.want)
		}
	}
	if counts.get("time limited") == 0 {
		t.Error("nothing counted as limited")
	}
}

// checkDatagramBounds states what must hold for any request at all.
func checkDatagramBounds(t *testing.T, d *datagramService, req []byte) {
	answer, service, ok := d.ask(nil, req, farAway)
	if ok && len(answer) > 3*len(req)+28 {
		t.Fatalf("%q: %s answers %d bytes to %d", req, service, len(answer), len(req))
	}
	if ok && (service == "echo" || service == "upper") && len(answer) >= len(req) {
		t.Fatalf("%q: %s does not shrink", req, service)
	}
	if ok && service == "upper" && utf8.Valid(req) && !utf8.Valid(answer) {
		t.Fatalf("%q: upper broke UTF-8: %q", req, answer)
	}
	// Two services on two machines that are set upon each other come to an end
	// within five steps, whatever it was that began it: echo or upper, a word,
	// the time, which nobody answers. The rate has no part in this.
	for steps := 5; ; steps-- {
		answer, service, ok := d.ask(nil, req, farAway)
		if !ok {
			break
		}
		if steps == 0 {
			t.Fatalf("two services go on answering each other: %s %q", service, answer)
		}
		req = answer
	}
}

func FuzzDatagram(f *testing.F) {
	for _, s := range []string{
		"", "time", "time rfc3339", "echo hi", "echo echo echo", "upper straße \u0250", "hello",
		"hello " + strings.Repeat("x", 200), "upper echo time", "Mon Jan  2 15:04:05 2006\n", "\x00", "{}", "\xed\x51\x80\xff",
		"echo upper echo", "12:34:56", "echo 12:34:5", "upper hello ", strings.Repeat("echo ", 1000), "echo hello" + strings.Repeat(" ", 200),
	} {
		f.Add([]byte(s))
	}
	d, _ := newTestDatagramService()
	d.count = func(string, string) {}
	now := datagramTestTime
	d.now = func() time.Time { return now }
	f.Fuzz(func(t *testing.T, req []byte) {
		now = now.Add(time.Minute) // no limit from what was asked before
		checkDatagramBounds(t, d, req)
	})
}

// A foreign service that sends everything back, with words of its own before
// it, does not get a second answer.
func TestDatagramForeignEchoEnds(t *testing.T) {
	d, _ := newTestDatagramService()
	for _, foreign := range []func([]byte) []byte{
		bytes.Clone,
		bytes.ToUpper,
		func(b []byte) []byte { return append([]byte("you said: "), b...) },
	} {
		req := []byte("any word")
		for steps := 0; ; steps++ {
			answer, _, ok := d.compose(nil, req, false, datagramTestTime)
			if !ok {
				break
			}
			if steps == 3 {
				t.Fatalf("still answering: %q", answer)
			}
			req = foreign(answer)
		}
	}
}

func TestDatagramAnswerDoesNotAllocate(t *testing.T) {
	d, _ := newTestDatagramService()
	d.count = func(string, string) {}
	src := netip.MustParseAddrPort("[::1]:40000")
	dst := make([]byte, 0, 1024)
	for _, req := range []string{"", "time", "time rfc3339", "echo hi", "upper grün", "hello", "\xff", "word"} {
		in := []byte(req)
		if n := testing.AllocsPerRun(100, func() {
			d.ask(dst, in, src)
			d.ask(dst, in, farAway)
		}); n != 0 {
			t.Errorf("%q: %v allocations, want 0", req, n)
		}
	}
}

// startDatagramService serves pc until the test ends.
func startDatagramService(t testing.TB, d *datagramService, pc net.PacketConn) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.serve(ctx, pc) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve = %v; want nil after its context ended", err)
		}
		if _, err := pc.WriteTo([]byte("x"), pc.LocalAddr()); err == nil {
			t.Error("serve left its socket open")
		}
	})
}

func askDatagram(t testing.TB, c net.Conn, req string) string {
	t.Helper()
	c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := c.Write([]byte(req)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, datagramMax)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatalf("%.20q: no answer: %v", req, err)
	}
	return string(buf[:n])
}

func TestDatagramServeUDP(t *testing.T) {
	for _, tt := range []struct{ network, listen, ask string }{
		{"udp4", "127.0.0.1:0", "127.0.0.1"},
		{"udp6", "[::1]:0", "::1"},
		// A connected client hears only the address it asked, which is not the
		// one the kernel would choose to answer from.
		{"udp4", "0.0.0.0:0", "127.0.0.2"},
		{"udp", "[::]:0", "127.0.0.3"},
		{"udp", "[::]:0", "::1"},
	} {
		t.Run(tt.listen+" "+tt.ask, func(t *testing.T) {
			pc, err := net.ListenPacket(tt.network, tt.listen)
			if err != nil {
				if strings.Contains(tt.listen, "::") {
					t.Skipf("no IPv6 here: %v", err)
				}
				t.Fatal(err)
			}
			d, counts := newTestDatagramService()
			port := pc.LocalAddr().(*net.UDPAddr).Port
			c, err := net.Dial("udp", net.JoinHostPort(tt.ask, fmt.Sprint(port)))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			// The first waits in the socket before it is served, as the one
			// does that makes systemd start the daemon.
			c.Write([]byte("echo early"))
			startDatagramService(t, d, pc)
			c.SetDeadline(time.Now().Add(time.Minute))
			early := make([]byte, 10)
			if n, err := c.Read(early); err != nil || string(early[:n]) != "early" {
				t.Fatalf("datagram from before serve: %q, %v", early[:n], err)
			}
			if got := askDatagram(t, c, "time rfc3339"); got != "2026-03-04T05:06:07.000089Z\n" {
				t.Errorf("time rfc3339 = %q", got)
			}
			if got := askDatagram(t, c, ""); binary.BigEndian.Uint32([]byte(got)) != uint32(datagramTestTime.Unix()+rfc868Epoch) {
				t.Errorf("RFC 868 time = %x", got)
			}
			if got := askDatagram(t, c, "echo "); got != "" {
				t.Errorf("echo of nothing = %q", got)
			}
			big := strings.Repeat("x", 60000)
			if got := askDatagram(t, c, "upper "+big); got != strings.ToUpper(big) {
				t.Errorf("upper of %d bytes gave %d", len(big), len(got))
			}
			// What gets no answer does not hold up what comes after it.
			c.Write([]byte("\xff\xff"))
			if got := askDatagram(t, c, "hello"); !strings.HasPrefix(got, `{"name":"box",`) {
				t.Errorf("hello = %q", got)
			}
			if counts.get("none malformed") != 1 || counts.get("rfc3339 ok") != 1 {
				t.Errorf("counts = %v", counts.n)
			}
		})
	}
}

// Nothing is allocated for a datagram: one at a time, in batches, and on a unix
// socket. AllocsPerRun counts the whole process, so the service's share too.
func TestDatagramServeDoesNotAllocate(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		network, listen string
		batch           int
	}{
		{"udp4", "127.0.0.1:0", 1},
		{"udp4", "0.0.0.0:0", 1},
		{"udp4", "127.0.0.1:0", 100},
		{"udp", "[::]:0", 100},
		{"unixgram", filepath.Join(dir, "service"), 1},
	} {
		t.Run(fmt.Sprint(tt.network, " ", tt.batch), func(t *testing.T) {
			pc, err := net.ListenPacket(tt.network, tt.listen)
			if err != nil {
				t.Fatal(err)
			}
			d, _ := newTestDatagramService()
			d.count = func(string, string) {}
			var c net.Conn
			if u, ok := pc.LocalAddr().(*net.UDPAddr); ok {
				c, err = net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: u.Port})
			} else {
				c, err = net.DialUnix("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "client"), Net: "unixgram"}, pc.LocalAddr().(*net.UnixAddr))
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			startDatagramService(t, d, pc)
			c.SetDeadline(time.Now().Add(time.Minute))
			req, buf := []byte("time"), make([]byte, 100)
			if n := testing.AllocsPerRun(200, func() {
				for range tt.batch {
					c.Write(req)
				}
				for range tt.batch {
					if _, err := c.Read(buf); err != nil {
						t.Fatal(err)
					}
				}
			}); n != 0 {
				t.Errorf("%v allocations for %d datagrams, want 0", n, tt.batch)
			}
		})
	}
}

func TestDatagramServeUnix(t *testing.T) {
	dir := t.TempDir()
	addr := func(name string) *net.UnixAddr {
		return &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unixgram"}
	}
	pc, err := net.ListenUnixgram("unixgram", addr("service"))
	if err != nil {
		t.Fatal(err)
	}
	d, counts := newTestDatagramService()
	startDatagramService(t, d, pc)

	// One that did not bind cannot be answered; one that never reads must not
	// stop the loop.
	nameless, err := net.DialUnix("unixgram", nil, addr("service"))
	if err != nil {
		t.Fatal(err)
	}
	defer nameless.Close()
	nameless.Write([]byte("time"))
	deaf, err := net.DialUnix("unixgram", addr("deaf"), addr("service"))
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	deaf.SetDeadline(time.Now().Add(time.Minute))
	for asks := 0; counts.get("time error") == 0; asks++ {
		if asks == 100_000 {
			t.Fatal("the kernel keeps 100,000 answers for a client that never reads")
		}
		if _, err := deaf.Write([]byte("time")); err != nil {
			t.Fatal(err)
		}
	}
	deaf.Close() // gives back our send buffer

	c, err := net.DialUnix("unixgram", addr("client"), addr("service"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := askDatagram(t, c, "echo over here"); got != "over here" {
		t.Errorf("echo = %q", got)
	}
	if got := askDatagram(t, c, ""); len(got) != 4 {
		t.Errorf("empty datagram: %q", got)
	}
	if got := askDatagram(t, c, "hello"); !strings.HasPrefix(got, `{"name":"box",`) {
		t.Errorf("hello = %q", got)
	}
	if counts.get("time refused") != 1 {
		t.Errorf("counts = %v; want one refused", counts.n)
	}
}

// A bug in one answer costs that answer.
func TestDatagramPanicIsContained(t *testing.T) {
	d, counts := newTestDatagramService()
	d.info = func() helloInfo { panic("bug") }
	if _, _, ok := d.compose(nil, []byte("hello"), false, datagramTestTime); ok || counts.get("none error") != 1 {
		t.Error("a panic became an answer, or was not counted")
	}
}

func TestDatagramServeReportsForeignClose(t *testing.T) {
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc.Close()
	d, _ := newTestDatagramService()
	if err := d.serve(context.Background(), pc); err == nil {
		t.Error("serve on a closed socket = nil")
	}
}

// --- who is answered ---

// Two services are set upon each other by a datagram that one of them seems to
// have sent the other. Each such exchange ends with a datagram that is not
// answered.
func TestDatagramTwoServicesEnd(t *testing.T) {
	a, b := listenDatagrams(t, "udp4", "127.0.0.1:0"), listenDatagrams(t, "udp4", "127.0.0.1:0")
	d, counts := newTestDatagramService()
	startDatagramService(t, d, a)
	e, more := newTestDatagramService()
	startDatagramService(t, e, b)
	forged := []string{"", "time", "time rfc3339", "any word", "hello", "echo time", "echo echo hello", "upper echo word", "echo", "upper " + strings.Repeat("echo ", 20)}
	for _, text := range forged {
		if _, err := b.WriteTo([]byte(text), a.LocalAddr()); err != nil {
			t.Fatal(err)
		}
	}
	total := func(c *datagramCounts) (n int) {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, k := range c.n {
			n += k
		}
		return n
	}
	ended := func() int { return counts.get("none malformed") + more.get("none malformed") }
	if !soon(func() bool { return ended() >= len(forged) }) {
		t.Fatalf("%d of %d exchanges have ended: %v, %v", ended(), len(forged), counts.n, more.n)
	}
	// Longest are the 20 echoes of the last; all together are few.
	if n := total(counts) + total(more); ended() != len(forged) || n > 60 {
		t.Errorf("%d datagrams, %d ends; want no more than 60, and %d", n, ended(), len(forged))
	}
}

// Another berth, or a lie: the same port, at another address.
func TestDatagramSamePortIsNotAnswered(t *testing.T) {
	pc := listenDatagrams(t, "udp4", "127.0.0.1:0")
	port := pc.LocalAddr().(*net.UDPAddr).Port
	d, counts := newTestDatagramService()
	startDatagramService(t, d, pc)
	other, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 5), Port: port}, pc.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	other.Write([]byte("time"))
	if got := askDatagram(t, dialDatagrams(t, pc, "127.0.0.1"), "echo later"); got != "later" {
		t.Errorf("echo = %q", got)
	}
	if counts.get("none refused") != 1 {
		t.Errorf("counts = %v; want one refused", counts.n)
	}
}

// An echo that another service would echo again stays on this machine.
func TestDatagramEchoOfEcho(t *testing.T) {
	d, counts := newTestDatagramService()
	here := netip.MustParseAddrPort("127.0.0.1:40000")
	for _, tt := range []struct {
		req string
		far bool
	}{
		{"echo hi", true},
		{"echo echos", true},
		{"echo time", true},
		{"echo echo hi", false},
		{"echo UPPER hi", false},
		{"upper echo hi", false},
		{"upper upper\x00", false},
	} {
		if _, _, ok := d.ask(nil, []byte(tt.req), here); !ok {
			t.Errorf("%q from this machine is not answered", tt.req)
		}
		if _, _, ok := d.ask(nil, []byte(tt.req), farAway); ok != tt.far {
			t.Errorf("%q from another machine: answered %v; want %v", tt.req, ok, tt.far)
		}
	}
	if counts.get("echo refused") != 2 || counts.get("upper refused") != 2 {
		t.Errorf("counts = %v", counts.n)
	}
}

// [filter] of the configuration holds for datagrams too, IPv4 as IPv4.
func TestDatagramFilter(t *testing.T) {
	d, counts := newTestDatagramService()
	denied := netip.MustParsePrefix("192.0.2.0/24")
	linkLocal := netip.MustParsePrefix("fe80::/10")
	d.allowed = func(a netip.Addr) bool { return !denied.Contains(a) && !linkLocal.Contains(a) }
	for _, tt := range []struct {
		src  string
		want bool
	}{
		{"192.0.2.7:40000", false},
		{"[::ffff:192.0.2.7]:40000", false},
		{"192.0.3.7:40000", true},
		{"[2001:db8::1]:40000", true},
		{"127.0.0.1:40000", true},
	} {
		if _, _, ok := d.ask(nil, []byte("time"), netip.MustParseAddrPort(tt.src)); ok != tt.want {
			t.Errorf("from %s: answered %v; want %v", tt.src, ok, tt.want)
		}
	}
	if counts.get("none refused") != 2 {
		t.Errorf("counts = %v; want two refused", counts.n)
	}

	// The kernel's own form of an address, with a zone, on a real socket.
	pc := listenDatagrams(t, "udp", "[::]:0")
	e, counts := newTestDatagramService()
	var deny atomic.Bool
	e.allowed = func(a netip.Addr) bool { return !deny.Load() || a != netip.MustParseAddr("127.0.0.1") }
	startDatagramService(t, e, pc)
	v4, v6 := dialDatagrams(t, pc, "127.0.0.1"), dialDatagrams(t, pc, "::1")
	askDatagram(t, v4, "echo 1")
	deny.Store(true) // as a reload does
	v4.Write([]byte("echo 2"))
	askDatagram(t, v6, "echo 3")
	if !soon(func() bool { return counts.get("none refused") == 1 && counts.get("echo ok") == 2 }) {
		t.Errorf("counts = %v; want one refused and two answered", counts.n)
	}
}

// A loopback source is this machine only if it came in by the loopback
// interface. Where that is not known, as of what was queued before the option
// was set, the kernel has dropped such a one already, but with route_localnet.
func TestDatagramLoopbackSourceFromTheWire(t *testing.T) {
	d, counts := newTestDatagramService()
	for _, tt := range []struct {
		src    string
		device uint32
		want   bool
	}{
		{"127.0.0.1:40000", 1, true},
		{"127.0.0.1:40000", 0, true},
		{"127.0.0.1:40000", 2, false},
		{"[::1]:40000", 2, false},
		{"[::ffff:127.0.0.9]:40000", 7, false},
		{"203.0.113.9:40000", 2, true},
	} {
		q := &datagramQuestion{text: []byte("time"), src: netip.MustParseAddrPort(tt.src), own: 2121, device: tt.device, at: datagramTestTime}
		if _, _, ok := d.answer(nil, q); ok != tt.want {
			t.Errorf("from %s by interface %d: answered %v; want %v", tt.src, tt.device, ok, tt.want)
		}
	}
	if counts.get("none refused") != 3 {
		t.Errorf("counts = %v; want three refused", counts.n)
	}

	// The kernel tells the interface, of IPv4 on a dual socket too.
	for _, tt := range []struct{ network, listen, ask string }{
		{"udp4", "127.0.0.1:0", "127.0.0.1"}, {"udp", "[::]:0", "127.0.0.1"}, {"udp", "[::]:0", "::1"},
	} {
		pc := listenDatagrams(t, tt.network, tt.listen)
		b, _, err := d.udpStep(pc)
		if err != nil {
			t.Fatal(err)
		}
		dialDatagrams(t, pc, tt.ask).Write([]byte("time"))
		pc.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := b.read(); err != nil {
			t.Fatal(err)
		}
		if _, device := udpReplyFrom(b.request(0).control); device != datagramLoopback {
			t.Errorf("%s by %s: interface %d; want %d", tt.listen, tt.ask, device, datagramLoopback)
		}
		b.close()
	}
}

// A unix client's name must be that of a socket of its own: nothing it can say
// makes the daemon write to somebody else's.
func TestDatagramUnixNamesThatLie(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) *net.UnixAddr {
		return &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unixgram"}
	}
	pc, err := net.ListenUnixgram("unixgram", at("service"))
	if err != nil {
		t.Fatal(err)
	}
	d, counts := newTestDatagramService()

	// Queued before the service asks who sends: only what has no word of the
	// client's in it.
	early, err := net.DialUnix("unixgram", at("early"), at("service"))
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	early.Write([]byte("echo READY=1"))
	early.Write([]byte("upper ready=1"))
	early.Write([]byte("time rfc3339"))
	startDatagramService(t, d, pc)
	early.SetDeadline(time.Now().Add(time.Minute))
	buf := make([]byte, 100)
	if n, err := early.Read(buf); err != nil || string(buf[:n]) != "2026-03-04T05:06:07.000089Z\n" {
		t.Errorf("first answer %q, %v; want the time", buf[:n], err)
	}
	if counts.get("echo refused") != 1 || counts.get("upper refused") != 1 {
		t.Errorf("counts = %v", counts.n)
	}

	if got := askDatagram(t, early, "echo now"); got != "now" { // from here on it is known
		t.Errorf("echo = %q", got)
	}
	if got := askDatagram(t, early, "upper x"); got != "X" {
		t.Errorf("upper = %q", got)
	}

	// An abstract name, as the kernel gives to who binds to none.
	abstract, err := net.DialUnix("unixgram", &net.UnixAddr{Name: "@" + filepath.Join(dir, "abstract"), Net: "unixgram"}, at("service"))
	if err != nil {
		t.Fatal(err)
	}
	defer abstract.Close()
	if got := askDatagram(t, abstract, "echo over"); got != "over" {
		t.Errorf("echo to an abstract name = %q", got)
	}

	// Descriptors sent along do not stay with us.
	soon(func() bool { return counts.get("echo ok") == 2 }) // then the answer's own is closed
	before := datagramDescriptors(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	raw, err := early.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	rights := unix.UnixRights(int(null.Fd()), int(null.Fd()), int(null.Fd()))
	for range 10 {
		raw.Write(func(fd uintptr) bool {
			err = unix.Sendmsg(int(fd), []byte("echo fd"), rights, nil, 0)
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		if n, err := early.Read(buf); err != nil || string(buf[:n]) != "fd" {
			t.Errorf("%q, %v", buf[:n], err)
		}
	}
	if !soon(func() bool { return datagramDescriptors(t) == before+1 }) {
		t.Errorf("%d descriptors open, then %d; want one more", before, datagramDescriptors(t))
	}
}

func datagramDescriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestDatagramUnixSource(t *testing.T) {
	name := func(path string) []byte {
		return append(append(make([]byte, 0, 112), 1, 0), path...)
	}
	for _, tt := range []struct {
		path, own string
		want      string
		ok        bool
	}{
		{"/tmp/client\x00", "/run/service", "/tmp/client\x00", true},
		{"/tmp/client", "/run/service", "/tmp/client\x00", true},
		{"/" + strings.Repeat("x", 107), "/run/service", "/" + strings.Repeat("x", 107) + "\x00", true},
		{"/run/service\x00", "/run/service", "", false},
		{"run/systemd/notify\x00", "/run/service", "", false},
		{"", "/run/service", "", false},
		{"\x00", "/run/service", "", true},
		{"\x0012345", "/run/service", "", true},
		{"\x00service", "@service", "", false},
		{"\x00service", "", "", true},
	} {
		file, ok := unixSource(name(tt.path), tt.own)
		if ok != tt.ok || string(file) != tt.want {
			t.Errorf("unixSource(%q, %q) = %q, %v; want %q, %v", tt.path, tt.own, file, ok, tt.want, tt.ok)
		}
	}
}

func TestDatagramUnixTrusts(t *testing.T) {
	for _, tt := range []struct {
		sender, owner uint32
		service       string
		want          bool
	}{
		{1000, 1000, "echo", true},
		{1000, 0, "echo", false},
		{1000, 0, "time", false},
		{1000, 1001, "time", false},
		{0, 1000, "echo", true},
		{datagramNobody, datagramNobody, "echo", false},
		{datagramNobody, 0, "upper", false},
		{datagramNobody, 0, "hello", true},
	} {
		if got := unixTrusts(tt.sender, tt.owner, tt.service); got != tt.want {
			t.Errorf("unixTrusts(%d, %d, %s) = %v; want %v", tt.sender, tt.owner, tt.service, got, tt.want)
		}
	}
}

// --- speed ---

// plainDatagramLoop is the time service as few lines as it can be had: a
// blocking socket, recvfrom, the time, sendto, on a thread of its own. It is
// what BenchmarkDatagramTime compares with. It ends with an empty datagram.
func plainDatagramLoop(fd int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var from [unix.SizeofSockaddrInet6]byte
	in, out := make([]byte, 2048), make([]byte, 0, 64)
	for {
		size := uint32(len(from))
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&in[0])), uintptr(len(in)), 0,
			uintptr(unsafe.Pointer(&from[0])), uintptr(unsafe.Pointer(&size)))
		if errno != 0 || n == 0 {
			return
		}
		answer := time.Now().AppendFormat(out, datagramCtime)
		unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&answer[0])), uintptr(len(answer)), 0,
			uintptr(unsafe.Pointer(&from[0])), uintptr(size))
	}
}

// datagramLoad keeps window requests under way at the service on port for the
// time d and returns how many answers came. It asks many with one call, by
// segmentation offload, and so costs less than what it measures.
func datagramLoad(b *testing.B, port int, d time.Duration) (answers int) {
	const window, burst = 512, 64
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port}); err != nil {
		b.Fatal(err)
	}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	// A lost datagram must not stop the measurement.
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
	if err := unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT, len("time")); err != nil {
		b.Fatal(err)
	}
	asks := bytes.Repeat([]byte("time"), burst)
	msgs, iov, bufs := make([]datagramMessage, burst), make([]unix.Iovec, burst), make([]byte, 64*burst)
	for i := range msgs {
		iov[i].Base = &bufs[64*i]
		iov[i].SetLen(64)
		msgs[i].hdr.Iov = &iov[i]
		msgs[i].hdr.SetIovlen(1)
	}
	under := 0
	for end := time.Now().Add(d); time.Now().Before(end); {
		for ; under+burst <= window; under += burst {
			if _, err := unix.Write(fd, asks); err != nil {
				b.Fatal(err)
			}
		}
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])), burst, unix.MSG_WAITFORONE, 0, 0)
		switch errno {
		case 0:
			under -= int(n)
			answers += int(n)
		case unix.EAGAIN: // what is under way was lost
			under = 0
		case unix.EINTR:
		default:
			b.Fatal(errno)
		}
	}
	return answers
}

// BenchmarkDatagramTime compares the answers a second of the service with those
// of the plain loop, in turns, each turn begun by the other; ratio is the median
// of the rounds, 1 if they are equal. Rounds are iterations:
//
//	go test -run '^$' -bench DatagramTime -benchtime 15x .
func BenchmarkDatagramTime(b *testing.B) {
	const turn = 300 * time.Millisecond
	pc := listenDatagrams(b, "udp4", "127.0.0.1:0")
	m := newMetrics("test", "", metricSources{})
	d := newDatagramService(func() helloInfo { return datagramTestInfo }, m.datagram, slog.New(slog.DiscardHandler))
	startDatagramService(b, d, pc)
	port := pc.LocalAddr().(*net.UDPAddr).Port

	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		b.Fatal(err)
	}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	sa, err := unix.Getsockname(fd)
	if err != nil {
		b.Fatal(err)
	}
	plain := sa.(*unix.SockaddrInet4).Port
	ended := make(chan struct{})
	go func() { plainDatagramLoop(fd); close(ended) }()
	b.Cleanup(func() {
		if c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: plain}); err == nil {
			c.Write(nil)
			c.Close()
			<-ended
		}
		unix.Close(fd)
	})

	var ratios, ours, theirs []float64
	datagramLoad(b, port, turn/3)
	datagramLoad(b, plain, turn/3)
	for round := 0; b.Loop(); round++ {
		var n [2]int
		for i := range n {
			which := (round + i) % 2
			n[which] = datagramLoad(b, []int{port, plain}[which], turn)
		}
		ours = append(ours, float64(n[0])/turn.Seconds())
		theirs = append(theirs, float64(n[1])/turn.Seconds())
		ratios = append(ratios, float64(n[0])/float64(max(n[1], 1)))
	}
	middle := func(f []float64) float64 {
		slices.SortFunc(f, cmp.Compare[float64])
		return f[len(f)/2]
	}
	b.ReportMetric(middle(ours), "answers/s")
	b.ReportMetric(middle(theirs), "plain/s")
	b.ReportMetric(middle(ratios), "ratio")
	b.ReportMetric(ratios[0], "least")
	b.ReportMetric(ratios[len(ratios)-1], "most")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkDatagramUDP is one question and its answer, one at a time.
func BenchmarkDatagramUDP(b *testing.B) {
	pc := listenDatagrams(b, "udp4", "127.0.0.1:0")
	d, _ := newTestDatagramService()
	d.count = func(string, string) {}
	startDatagramService(b, d, pc)
	c := dialDatagrams(b, pc, "127.0.0.1")
	c.SetDeadline(time.Time{})
	req, buf := []byte("time"), make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		c.Write(req)
		if _, err := c.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}
