package main

// The metrics room owns every name under /metrics, their label sets, and what a
// scrape is answered. It is a leaf: others tell it what happened through typed
// methods, and what it must ask (quotas, bans, free space) comes through
// functions that main gives it. It knows no session, user or file; nothing but it
// and metrics_users.go sees the Prometheus library. A peer's address, a path or
// anything else a stranger chooses is never a label.

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"maps"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/encoding/prototext"
)

const (
	// metricPairLimit bounds the combinations a pairCounter keeps. The command
	// table has fewer than 100 verbs and each sees two or three code classes;
	// more than this is a caller that lets strangers choose labels.
	metricPairLimit = 512

	// metricOther stands for every label value past a bound.
	metricOther = "other"

	// scrapeTimeout is Prometheus' own default scrape_timeout: nobody waits for
	// an answer that comes later.
	scrapeTimeout = 10 * time.Second

	// Native histograms beside the classic ones: each bucket is 10 % wider than the one
	// below it, and there are at most so many of them; then it begins anew, at most
	// once an hour. They cost a scrape in text nothing: only protobuf carries them,
	// to a Prometheus that was told to take them. Exemplars would cost OpenMetrics,
	// which is off here (see scrapeHandler), and name sessions that are in the log.
	nativeFactor  = 1.1
	nativeBuckets = 100
	nativeReset   = time.Hour

	// scrapesInFlight bounds the memory that impatient scrapers can hold; two
	// Prometheus servers and a person with curl are the usual most.
	scrapesInFlight = 4

	// textChunk is how much text is written at once.
	textChunk = 16 << 10
)

// metrics counts what berth does. All methods may be called from any
// goroutine; none blocks on the network or calls back into the program.
type metrics struct {
	registry *prometheus.Registry
	src      metricSources
	// The Go and process collectors cost more to make than all the rest
	// together, so the first scrape makes them and not the start.
	prepareOnce sync.Once

	sessions         *prometheus.GaugeVec
	sessionsTotal    *prometheus.CounterVec
	logins           *prometheus.CounterVec
	transfers        *userCounters
	transferBytes    *userCounters
	transferDuration *prometheus.HistogramVec
	transfersActive  *prometheus.GaugeVec
	quotaRejects     *userCounters
	commands         *prometheus.CounterVec
	commandDuration  *prometheus.HistogramVec
	hooksLost        *prometheus.CounterVec
	dataConnections  *prometheus.CounterVec
	tlsSessions      *prometheus.CounterVec
	reloadSuccess    prometheus.Gauge
	reloadTimestamp  prometheus.Gauge
	loginFailures    *prometheus.CounterVec
	httpRequests     *prometheus.CounterVec
	commandLatency   [len(commandClasses)]prometheus.Observer
	suppressed       prometheus.Counter

	controlCommands pairCounter
	datagrams       pairCounter

	// panics counts sessions, datagrams and scrapes ended by a bug of ours.
	panics prometheus.Counter
	// acceptErrors counts failed accepts, EMFILE above all.
	acceptErrors prometheus.Counter
	// missingCloseNotify counts uploads under TLS that ended by FIN without
	// close_notify, so that a cut cannot be told from an end.
	missingCloseNotify prometheus.Counter
}

// A commandClass is the kind of work that an FTP command or a framed request is.
type commandClass uint8

const (
	classOther commandClass = iota
	classLogin
	classList
	classTransfer
	classFile
)

var commandClasses = [...]string{"other", "login", "list", "transfer", "file"}

// httpPages are the values of the label page; what is not among them is "other".
var httpPages = []string{"metrics", "healthz", "readyz", "status", metricOther}

// userUsage is one user's line in the quota gauges. A quota of 0 means none.
type userUsage struct {
	Name                                         string
	QuotaBytes, UsedBytes, QuotaFiles, UsedFiles int64
	Known                                        bool // what is used; false: it is still being counted
	Rotates                                      bool // a full home makes room by itself
}

// passiveUsage is the use of passive ports, field by field the portReport of passive.go.
type passiveUsage struct {
	Size    int // 0: any port
	InUse   int
	Fullest int
	Waiting int
	Refused uint64
	Foreign uint64
}

// homeStates counts homes by what the ledger knows of them.
type homeStates struct{ Known, Scanning, Unknown int }

// metricSources are the questions a scrape asks. Each function may be nil, is
// called once a scrape from a goroutine of its own, and must wait neither for a
// client nor for a disk. Gauges whose source is nil or fails are left out of that
// scrape: a wrong zero would be worse than a gap.
type metricSources struct {
	Anonymous    bool     // no label names a user, and there are sums instead
	LoginReasons []string // why logins fail; these series exist from the start

	Usage             func() []userUsage     // known users only, each once, by name
	IsUser            func(name string) bool // who is none any more loses his series
	StateFree         func() (uint64, error) // bytes an unprivileged writer can still use
	CertificateExpiry func() time.Time       // zero: no certificate
	Bans              func() int             // addresses banned now
	UploadHooks       func() int             // uploads whose command has yet to succeed
	Passive           func() passiveUsage
	Partials          func() (n int, oldest time.Time, known bool) // interrupted uploads that can be resumed
	Homes             func() homeStates
	HashQueue         func() int   // logins that wait for a password hash
	DigestQueue       func() int   // requests that wait to compute a digest
	Staging           func() int64 // bytes in uploads under way
	Draining          func() int   // 1: it is on its way down
}

// newMetrics makes the metrics of one daemon on a registry of their own. The
// configuration counts as loaded at this moment.
func newMetrics(version, revision string, src metricSources) *metrics {
	m := &metrics{registry: prometheus.NewRegistry(), src: src}

	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(v)
		return v
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(v)
		return v
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets,
			NativeHistogramBucketFactor: nativeFactor, NativeHistogramMaxBucketNumber: nativeBuckets, NativeHistogramMinResetDuration: nativeReset}, labels)
		m.registry.MustRegister(v)
		return v
	}

	// ofUsers has the user's name as its last label, unless there is to be none.
	ofUsers := func(name, help string, labels ...string) *userCounters {
		return newUserCounters(name, help, m.labels("user", labels...)...)
	}

	gauge("berth_build_info", "Always 1; the labels tell which berth this is.",
		"version", "revision", "goversion").
		WithLabelValues(metricLabel(version), metricLabel(revision), runtime.Version()).Set(1)

	m.sessions = gauge("berth_sessions", "Sessions open now.", "protocol")
	m.sessionsTotal = counter("berth_sessions_total", "Sessions that have ended, by how they ended.", "protocol", "result")
	m.logins = counter("berth_logins_total", "Login attempts.", "method", "result")

	m.transfers = ofUsers("berth_transfers_total", "Transfers that have ended, by how they ended.",
		"direction", "protocol", "result")
	m.transferBytes = ofUsers("berth_transfer_bytes_total", "Bytes of file content sent (download) and received (upload), counted while they move.",
		"direction", "protocol")
	// From a small file on a LAN to a disk image over a radio link.
	m.transferDuration = histogram("berth_transfer_duration_seconds", "Time transfers took, whatever their end.",
		[]float64{0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 300, 900, 3600}, "direction", "protocol")
	m.transfersActive = gauge("berth_transfers_active", "Transfers running now.", "direction")

	m.quotaRejects = ofUsers("berth_quota_rejected_total", "Uploads refused or cut short by a user's quota.")

	m.commands = counter("berth_commands_total", "Commands run for users, by how they ended.", "command", "result")
	m.commandDuration = histogram("berth_command_duration_seconds", "Time commands took, whatever their end.",
		[]float64{0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 300, 900}, "command")

	m.hooksLost = counter("berth_on_upload_lost_total", "Uploads whose on_upload command never succeeded and is not tried any more.", "command", "reason")

	m.datagrams.vec = counter("berth_datagrams_total", "Datagrams received, by the service asked and what became of them.",
		"service", "result")
	m.controlCommands.vec = counter("berth_control_commands_total", "Control commands answered, by verb and class of the final reply code.",
		"verb", "code_class")

	m.dataConnections = counter("berth_data_connections_total", "Data connections asked for, by how that went.", "mode", "result")
	m.tlsSessions = counter("berth_tls_data_sessions_total", "TLS data connections, by whether they resumed the control connection's session.", "result")
	m.missingCloseNotify = counter("berth_tls_missing_close_notify_total",
		"Uploads under TLS that ended without close_notify.").WithLabelValues()

	m.panics = counter("berth_panics_total", "Bugs of berth that were caught; each ended one session, datagram or question and no more.").WithLabelValues()
	m.acceptErrors = counter("berth_accept_errors_total", "Connections that could not be accepted, as for want of file descriptors.").WithLabelValues()

	m.loginFailures = counter("berth_login_failures_total", "Logins that failed, by why.", "reason")
	for _, reason := range src.LoginReasons {
		m.loginFailures.WithLabelValues(reason)
	}
	m.httpRequests = counter("berth_http_requests_total", "Requests to the http listener, by page and status code.", "page", "code")
	latency := histogram("berth_control_command_duration_seconds", "Time berth took over commands and requests, without that of clients, transfers and programs.",
		[]float64{0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10}, "class")
	for class, name := range commandClasses {
		m.commandLatency[class] = latency.WithLabelValues(name)
	}
	m.suppressed = counter("berth_log_suppressed_total", "Lines left out of the log because there were too many of their kind.").WithLabelValues()

	m.reloadSuccess = gauge("berth_config_reload_success", "Whether the last reload of the configuration was taken (1) or refused (0).").WithLabelValues()
	m.reloadTimestamp = gauge("berth_config_reload_timestamp_seconds", "When the running configuration was loaded, as Unix time.").WithLabelValues()
	m.configReloaded(true)

	m.registry.MustRegister(&sourceCollector{src: src, panics: m.panics})
	return m
}

// sessionStarted counts a session in. protocol is ftp, ftps, local or frames.
func (m *metrics) sessionStarted(protocol string) { m.sessions.WithLabelValues(protocol).Inc() }

// sessionSwitched moves an open session to another protocol, as AUTH TLS and
// FRAM do. The session is counted as ended once, under its last protocol.
func (m *metrics) sessionSwitched(from, to string) {
	m.sessions.WithLabelValues(from).Dec()
	m.sessions.WithLabelValues(to).Inc()
}

// sessionRefused counts a connection that never became a session: a filter, a
// ban or a limit was in its way. It pairs with nothing.
func (m *metrics) sessionRefused(protocol string) {
	m.sessionsTotal.WithLabelValues(protocol, "refused").Inc()
}

// sessionEnded counts a session out; it pairs with one sessionStarted. result
// is ok, idle, error, abuse, panic or another word of a fixed set.
func (m *metrics) sessionEnded(protocol, result string) {
	m.sessions.WithLabelValues(protocol).Dec()
	m.sessionsTotal.WithLabelValues(protocol, result).Inc()
}

// login counts one attempt. method is password, certificate or peer; result is
// ok, failed, banned or another word of a fixed set.
func (m *metrics) login(method, result string) { m.logins.WithLabelValues(method, result).Inc() }

// A countedTransfer is one transfer from its beginning to its end.
type countedTransfer struct {
	m                         *metrics
	user, direction, protocol string
	bytes                     prometheus.Counter
	started                   time.Time
	ended                     bool
}

// transferStarted counts a transfer in. direction is download or upload. Its end
// must be deferred: a panic on the way would else have it run for ever.
func (m *metrics) transferStarted(user, direction, protocol string) *countedTransfer {
	m.transfersActive.WithLabelValues(direction).Inc()
	return &countedTransfer{m: m, user: user, direction: direction, protocol: protocol, started: time.Now(),
		bytes: m.transferSeries(user, direction, protocol)}
}

// transferSeries is the counter of a transfer's bytes. With it comes that of transfers that
// ended well, so that increase() sees the first one.
func (m *metrics) transferSeries(user, direction, protocol string) prometheus.Counter {
	m.ended(user, direction, protocol, "ok")
	return m.transferBytes.with(m.labels(user, direction, protocol)...)
}

// ended is the counter of transfers that ended so. Nothing else is to be told of one that
// could not begin.
//
//go:noinline
func (m *metrics) ended(user, direction, protocol, result string) prometheus.Counter {
	return m.transfers.with(m.labels(user, direction, protocol, result)...)
}

// add counts n bytes while they move; it does not allocate, and ignores n below 1.
func (t *countedTransfer) add(n int64) {
	if n > 0 {
		t.bytes.Add(float64(n))
	}
}

// end counts the transfer out. Only the first end of a transfer counts.
func (t *countedTransfer) end(result string) {
	if t.ended {
		return
	}
	t.ended = true
	t.m.transfersActive.WithLabelValues(t.direction).Dec()
	t.m.ended(t.user, t.direction, t.protocol, result).Inc()
	t.m.transferDuration.WithLabelValues(t.direction, t.protocol).Observe(time.Since(t.started).Seconds())
}

// labels is labels with the user's at their end, which is left out where none names one.
//
//go:noinline
func (m *metrics) labels(user string, others ...string) []string {
	if m.src.Anonymous {
		return others
	}
	return append(others, metricLabel(user))
}

// command counts one control command and the code of its final reply. verb is
// a verb of the command table, or empty for what is not in it. No allocation
// once a pair has been seen.
func (m *metrics) command(verb string, code int) {
	if verb == "" {
		verb = metricOther
	}
	class := metricOther
	switch code / 100 {
	case 1:
		class = "1xx"
	case 2:
		class = "2xx"
	case 3:
		class = "3xx"
	case 4:
		class = "4xx"
	case 5:
		class = "5xx"
	case 6: // RFC 2228 section 3: protected replies
		class = "6xx"
	}
	m.controlCommands.inc(verb, class)
}

// commandRun counts a named command (SITE EXEC, exec) that ended. command is
// its name in the configuration, or a fixed word for a shell line.
func (m *metrics) commandRun(command, result string, d time.Duration) {
	command = metricLabel(command)
	m.commands.WithLabelValues(command, result).Inc()
	m.commandDuration.WithLabelValues(command).Observe(d.Seconds())
}

// commandKnown has the series of a command there before it first runs.
func (m *metrics) commandKnown(command string) {
	command = metricLabel(command)
	m.commands.WithLabelValues(command, "exited")
	m.commandDuration.WithLabelValues(command)
}

// uploadHookLost counts an upload whose command will not run any more. reason is
// given_up, queue_full or another word of a fixed set.
func (m *metrics) uploadHookLost(command, reason string) {
	m.hooksLost.WithLabelValues(metricLabel(command), reason).Inc()
}

// datagram counts one datagram received. No allocation once a pair has been seen.
func (m *metrics) datagram(service, result string) { m.datagrams.inc(service, result) }

// quotaRejected counts an upload that the user's quota refused or cut short.
func (m *metrics) quotaRejected(user string) { m.quotaRejects.with(m.labels(user)...).Inc() }

// commandTook tells how long a command or request of that class took, without the
// time that its client, its transfer or its program took.
func (m *metrics) commandTook(class commandClass, d time.Duration) {
	m.commandLatency[class].Observe(max(d, 0).Seconds())
}

// loginFailed counts a login that failed; reason is one of metricSources.LoginReasons.
func (m *metrics) loginFailed(reason string) { m.loginFailures.WithLabelValues(reason).Inc() }

// httpAnswered counts an answer of the http listener. page is one of httpPages.
func (m *metrics) httpAnswered(page string, code int) {
	if !inList(httpPages, page) {
		page = metricOther
	}
	m.httpRequests.WithLabelValues(page, strconv.Itoa(code)).Inc()
}

// logSuppressed counts n lines that were left out of the log.
func (m *metrics) logSuppressed(n int) {
	if n > 0 {
		m.suppressed.Add(float64(n))
	}
}

// dataConnection counts a data connection: mode is passive or active, result
// is ok, timeout, refused (wrong peer), unreachable or another fixed word.
func (m *metrics) dataConnection(mode, result string) {
	m.dataConnections.WithLabelValues(mode, result).Inc()
}

// tlsResumption counts a TLS data connection: result is resumed, full or refused.
func (m *metrics) tlsResumption(result string) { m.tlsSessions.WithLabelValues(result).Inc() }

// configReloaded tells the outcome of a reload. A refused one leaves the time
// stamp alone, because the old configuration still runs.
func (m *metrics) configReloaded(ok bool) {
	if !ok {
		m.reloadSuccess.Set(0)
		return
	}
	m.reloadSuccess.Set(1)
	m.reloadTimestamp.SetToCurrentTime()
}

// metricLabel makes a name from a configuration file fit to be a label value;
// the library panics on what is not UTF-8.
//
//go:noinline
func metricLabel(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// A pairCounter is a counter with two labels whose children are kept in a map
// that is copied when it grows, so that counting takes one lookup and neither
// lock nor allocation. Past metricPairLimit the first label becomes "other".
type pairCounter struct {
	vec   *prometheus.CounterVec
	known atomic.Pointer[map[[2]string]prometheus.Counter]
	grow  mutex // held to replace known
}

func (p *pairCounter) inc(a, b string) {
	if known := p.known.Load(); known != nil {
		if c, ok := (*known)[[2]string{a, b}]; ok {
			c.Inc()
			return
		}
	}
	p.add(a, b).Inc()
}

// add is the slow path of inc: the first event of a pair.
func (p *pairCounter) add(a, b string) prometheus.Counter {
	p.grow.Lock()
	defer p.grow.Unlock()
	var old map[[2]string]prometheus.Counter
	if known := p.known.Load(); known != nil {
		old = *known
	}
	if c, ok := old[[2]string{a, b}]; ok {
		return c
	}
	if len(old) >= metricPairLimit {
		return p.vec.WithLabelValues(metricOther, metricLabel(b))
	}
	c := p.vec.WithLabelValues(metricLabel(a), metricLabel(b))
	next := make(map[[2]string]prometheus.Counter, len(old)+1)
	maps.Copy(next, old)
	// The caller's string may be part of a large buffer.
	next[[2]string{strings.Clone(a), strings.Clone(b)}] = c
	p.known.Store(&next)
	return c
}

// --- gauges whose values others know ---

//go:noinline
func sourceDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// A sourceCollector asks metricSources at each scrape. Each source is asked once
// for all that it tells, so that its gauges agree with each other.
type sourceCollector struct {
	src    metricSources
	panics prometheus.Counter
}

// Describe sends nothing, which makes the collector unchecked: its samples are
// described when they are made, and their number varies with the users.
func (s *sourceCollector) Describe(chan<- *prometheus.Desc) {}

// Collect asks each source. The library runs it in a goroutine where a panic
// would end the daemon, so each question is asked under a recover.
func (s *sourceCollector) Collect(ch chan<- prometheus.Metric) {
	show := func(kind prometheus.ValueType, v float64, name, help string) {
		ch <- prometheus.MustNewConstMetric(sourceDesc(name, help), kind, v)
	}
	gauge := func(v float64, name, help string) { show(prometheus.GaugeValue, v, name, help) }
	src := &s.src
	ask := func(name string, given bool, question func()) {
		if given {
			s.ask(name, ch, question)
		}
	}
	ask("berth_state_free_bytes", src.StateFree != nil, func() {
		if free, err := src.StateFree(); err == nil {
			gauge(float64(free), "berth_state_free_bytes", "Bytes free on the file system of the state directory.")
		}
	})
	ask("berth_certificate_expiry_timestamp_seconds", src.CertificateExpiry != nil, func() {
		if t := src.CertificateExpiry(); !t.IsZero() {
			gauge(float64(t.Unix()), "berth_certificate_expiry_timestamp_seconds", "When the TLS certificate ends, as Unix time.")
		}
	})
	for _, g := range [...]struct {
		name, help string
		value      func() int
	}{
		{"berth_on_upload_queue", "Uploads whose on_upload command has yet to succeed.", src.UploadHooks},
		{"berth_bans", "Addresses banned now after failed logins.", src.Bans},
		{"berth_password_hash_queue", "Logins that wait for their password hash.", src.HashQueue},
		{"berth_digest_queue", "Requests that wait to compute a file's digest.", src.DigestQueue},
		{"berth_draining", "Whether the daemon is on its way down and takes no sessions (1).", src.Draining},
	} {
		ask(g.name, g.value != nil, func() { gauge(float64(g.value()), g.name, g.help) })
	}
	ask("berth_staging_bytes", src.Staging != nil, func() {
		gauge(float64(src.Staging()), "berth_staging_bytes", "Bytes of uploads under way, which have no name yet.")
	})
	ask("berth_passive_ports", src.Passive != nil, func() {
		p := src.Passive()
		if p.Size > 0 { // else any port will do, and a share of them means nothing
			gauge(float64(p.Size), "berth_passive_ports", "Ports that data connections may come to.")
			gauge(float64(p.Fullest), "berth_passive_fullest", "Passive ports that the client address with the fewest left cannot have now.")
		}
		gauge(float64(p.InUse), "berth_passive_ports_in_use", "Passive ports that wait for a client's connection.")
		gauge(float64(p.Waiting), "berth_passive_waiting", "Clients that wait for a passive port.")
		show(prometheus.CounterValue, float64(p.Refused), "berth_passive_refused_total", "PASV and EPSV refused because no passive port was free.")
		show(prometheus.CounterValue, float64(p.Foreign), "berth_passive_foreign_total", "Connections to passive ports that nobody awaited, or from somebody else.")
	})
	ask("berth_partials", src.Partials != nil, func() {
		n, oldest, known := src.Partials()
		if known {
			gauge(float64(n), "berth_partials", "Interrupted uploads that can be resumed.")
		}
		if known && n > 0 {
			gauge(float64(oldest.Unix()), "berth_partials_oldest_timestamp_seconds", "When the last byte of the oldest interrupted upload came, as Unix time.")
		}
	})
	ask("berth_ledger_homes", src.Homes != nil, func() {
		h := src.Homes()
		desc := sourceDesc("berth_ledger_homes", "Homes by what the quota ledger knows of them.", "state")
		for state, n := range map[string]int{"known": h.Known, "scanning": h.Scanning, "unknown": h.Unknown} {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), state)
		}
	})
}

// ask runs one question; a panic in it becomes an error of this scrape.
func (s *sourceCollector) ask(name string, ch chan<- prometheus.Metric, question func()) {
	defer func() {
		if p := recover(); p != nil {
			s.panics.Inc()
			ch <- prometheus.NewInvalidMetric(sourceDesc(name, "Not available."), errorf("source of %s: panic: %v", name, p))
		}
	}()
	question()
}

// --- HTTP ---

// page answers /metrics.
func (m *metrics) page() httpHandler {
	scrapes := &scrapeHandler{gather: m.gather, inFlight: make(chan struct{}, scrapesInFlight)}
	return httpWithin(scrapeTimeout, scrapes.answer, fmt.Sprintf("The scrape took more than %v.", scrapeTimeout))
}

// A scrapeHandler answers /metrics as promhttp does, header for header. It is
// not promhttp because that links the OpenMetrics encoders and its middleware,
// some 240 KB of a binary that has to fit in small flash. OpenMetrics would stay off
// in any case: there a counter's family drops its _total, so the gauge
// berth_sessions and the counter berth_sessions_total would be one name.
type scrapeHandler struct {
	gather   func() ([]*dto.MetricFamily, error)
	inFlight chan struct{} // its capacity is the limit
	zippers  sync.Pool     // of *gzip.Writer, each of which holds most of a megabyte
	size     atomic.Int64  // of the last answer, as the next one is most often no longer
}

func (s *scrapeHandler) answer(a *httpAnswer, q *httpRequest) {
	select {
	case s.inFlight <- struct{}{}:
		defer func() { <-s.inFlight }()
	default:
		a.line(httpUnavailable, fmt.Sprintf("%d scrapes are running, which is the limit; try again later.", cap(s.inFlight)))
		return
	}
	families, err := s.gather()
	if err != nil && len(families) == 0 { // one source that fails must not hide the rest
		a.line(httpServerError, "no metrics could be gathered: "+err.Error())
		return
	}

	format := expfmt.NegotiateAccept(map[string][]string{"Accept": q.header.values("Accept")}, expfmt.DefaultAcceptedFormats()...)
	a.set("Vary", "Accept")
	a.set("Vary", "Accept-Encoding")
	a.set("Content-Type", string(format))
	a.body.Grow(int(s.size.Load()))
	var body io.Writer = &a.body
	if gzipPreferred(q.header.values("Accept-Encoding")) {
		a.set("Content-Encoding", "gzip")
		zip, ok := s.zippers.Get().(*gzip.Writer)
		if !ok {
			// A box's processor is what there is least of, and its scrapes go over a LAN.
			zip, _ = gzip.NewWriterLevel(nil, gzip.BestSpeed)
		}
		zip.Reset(&a.body)
		defer func() {
			zip.Close()
			s.zippers.Put(zip)
		}()
		body = zip
	}

	// Prometheus' federation and people pick families by name.
	only := q.url.Query()["name[]"]
	var scratch []byte
	for _, family := range families {
		if len(only) == 0 || inList(only, family.GetName()) {
			writeFamily(body, &scratch, format, family) // what cannot be encoded is left out
		}
	}
	s.size.Store(int64(a.body.Len()))
}

// writeFamily encodes one family. The format's escaping scheme has nothing to
// do: it is for names outside [a-zA-Z0-9_:], and there are none here.
func writeFamily(w io.Writer, scratch *[]byte, format expfmt.Format, family *dto.MetricFamily) (err error) {
	switch format.FormatType() {
	case expfmt.TypeProtoDelim:
		_, err = protodelim.MarshalTo(w, family)
	case expfmt.TypeProtoText:
		_, err = fmt.Fprintln(w, prototext.Format(family))
	case expfmt.TypeProtoCompact:
		_, err = fmt.Fprintln(w, family.String())
	default:
		err = writeText(w, scratch, family)
	}
	return err
}

// gzipPreferred reports whether Accept-Encoding (RFC 9110 section 12.5.3) names
// gzip with a weight above identity's. * stands for identity, which every client
// can read; an identity that is not named weighs nothing.
func gzipPreferred(accepted []string) bool {
	gzipWeight, identityWeight := 0.0, 0.0
	for _, line := range accepted {
		for member := range strings.SplitSeq(line, ",") {
			coding, parameter, weighted := strings.Cut(member, ";")
			weight := 1.0
			if weighted {
				_, q, _ := strings.Cut(parameter, "=")
				weight, _ = strconv.ParseFloat(strings.TrimSpace(q), 64) // 0, not wanted, if it makes no sense
			}
			switch strings.ToLower(strings.TrimSpace(coding)) {
			case "gzip":
				gzipWeight = max(gzipWeight, weight)
			case "identity", "*":
				identityWeight = max(identityWeight, weight)
			}
		}
	}
	return gzipWeight > identityWeight
}

// write writes what a scrape sees, as text.
func (m *metrics) write(w io.Writer) error {
	families, err := m.gather()
	if len(families) > 0 {
		err = nil // one source that fails must not hide the rest
	}
	var text bytes.Buffer
	var line []byte
	for _, family := range families {
		writeFamily(&text, &line, "", family)
	}
	if err == nil {
		_, err = w.Write(text.Bytes())
	}
	return err
}

// gather is what a scrape sees.
func (m *metrics) gather() ([]*dto.MetricFamily, error) {
	m.prepareOnce.Do(m.prepare)
	ofUsers := m.userFamilies() // first, so that the registry tells of a panic in it
	all, err := m.registry.Gather()
	for _, f := range ofUsers {
		at := 0 // by name, as the registry has them
		for at < len(all) && all[at].GetName() < f.GetName() {
			at++
		}
		all = append(all, nil)
		copy(all[at+1:], all[at:])
		all[at] = f
	}
	return all, err
}

// prepare makes what only a scrape needs.
func (m *metrics) prepare() {
	// Series that are there, at 0, before their first event let rate() and alerts see it.
	// Of users there is none but in quotaFamilies: most have one protocol and one direction,
	// and a thousand users of six would be a scrape twice as long.
	known := func(vec *prometheus.CounterVec, series string) {
		for _, values := range strings.Fields(series) {
			vec.WithLabelValues(strings.Split(values, "/")...)
		}
	}
	known(m.logins, "password/ok password/failed certificate/ok certificate/failed local/ok")
	known(m.dataConnections, "passive/ok passive/no_data_connection active/ok active/no_data_connection")
	known(m.tlsSessions, "resumed fresh foreign")
	known(m.datagrams.vec, "time/ok rfc3339/ok rfc868/ok echo/ok upper/ok hello/ok")
	known(m.controlCommands.vec, "PASS/2xx PASS/5xx RETR/2xx RETR/5xx STOR/2xx STOR/5xx login/2xx login/5xx get/2xx get/5xx put/2xx put/5xx")
	known(m.httpRequests, "metrics/200 metrics/503 healthz/200 readyz/200 readyz/503 status/200 other/404")
	known(m.sessionsTotal, "ftp/ok ftp/refused ftps/ok ftps/refused frames/ok local/ok")
	for _, protocol := range [...]string{"ftp", "ftps", "frames", "local"} {
		m.sessions.WithLabelValues(protocol)
		for _, direction := range [...]string{"download", "upload"} {
			m.transfersActive.WithLabelValues(direction)
			if protocol == "local" {
				continue // which moves files by frames
			}
			m.transferDuration.WithLabelValues(direction, protocol)
			if m.src.Anonymous {
				m.transferSeries("", direction, protocol)
			}
		}
	}
	m.registry.MustRegister(collectors.NewGoCollector())
	m.registry.MustRegister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
}
