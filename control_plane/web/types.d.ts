/**
 * What the control plane sends, as `control_plane/views/` describes it; a test holds each
 * interface against the model of the same name (`Run` against `RunView`). Never loaded by the page.
 * Times are Unix seconds; null means "not known" or "does not apply".
 */

declare global {
  interface Window {
    uPlot: typeof import("uplot");
  }
}

export type RunState =
  | "queued" | "starting" | "running" | "waiting_for_teacher" | "stopping"
  | "stopped" | "succeeded" | "failed" | "interrupted";

export type Wanted = "running" | "stopped";

export interface ForkedFrom {
  run_id: string;
  step: number;
}

export interface Run {
  id: string;
  name: string;
  state: RunState;
  wanted: Wanted;
  stop_at: "checkpoint" | null;
  forked_from: ForkedFrom | null;
  reason: string | null;
  message: string | null;
  since: number;
  created_at: number;
  seq: number;
  revision: number;
  attempt: number;
  restarts: number;
  resumable: boolean;
  resumes_at: number | null;
  resumes_when: string | null;
  heals: number;
  disk_bytes: number | null;
  queue_position: number | null;
  alpha: number | null;
  temperature: number | null;
  representation: string | null;
  top_k: number | null;
  num_draws: number | null;
  teacher: string | null;
  student: string | null;
  keep_every_nth_layer: number | null;
  lora_rank: number | null;
  dataset: string | null;
  step: number;
  steps: number;
  checkpoint_step: number | null;
  checkpoint_at: number | null;
  device: string | null;
  slots: string[];
  threads: number | null;
  tokens_per_second: number | null;
  eta_seconds: number | null;
  teacher_wait_share: number | null;
  latest: Record<string, number | null>;
  elapsed_seconds: number;
  heartbeat: number | null;
  settings: Record<string, any>;
  stale_since: number | null;
  stalled_since: number | null;
  activity: string | null;
  priority: number;
  group: string | null;
  tags: string[];
  notes: string;
}

/** A run in the page. */
export interface ShownRun extends Run {
  /** Which line style it has: its place in the order in which the page met the runs. */
  index: number;
  /** When this view of it arrived. */
  received: number;
}

export interface RunDetail extends Run {
  spec: Record<string, any>;
  history: HistoryEntry[];
  folder: string;
}

/** A change of state, or an event of the trainer. */
export interface HistoryEntry {
  at: number;
  kind: string;
  state: RunState | null;
  wanted: Wanted | null;
  attempt: number | null;
  reason: string | null;
  message: string | null;
  by: string | null;
  details: Record<string, any>;
}

/** Newest first. */
export interface HistoryPage {
  run_id: string;
  entries: HistoryEntry[];
  next_cursor: string | null;
}

export interface RunsPage {
  runs: Run[];
  total: number;
  next_cursor: string | null;
  revision: number;
}

export interface Disk {
  total_bytes: number;
  free_bytes: number;
  needed_bytes: number;
  low: boolean;
  warning: string | null;
}

/** What was measured at one step, by metric name. A null was not a finite number. */
export interface MetricsRecord {
  step: number;
  [metric: string]: number | null;
}

export interface Metrics {
  run_id: string;
  metrics: MetricsRecord[];
  cursor: string;
  rewound: boolean;
  more: boolean;
}

export interface Sample {
  step: number;
  prompt: string;
  student: string;
  teacher: string | null;
}

export interface Samples {
  run_id: string;
  samples: Sample[];
}

export interface Rollout {
  step: number;
  row: number;
  sample: number;
  prompt: string | null;
  prompt_ids: number[];
  text: string | null;
  ids: number[];
  end: number | null;
  tokens: string[] | null;
  kl: (number | null)[];
  mean_kl: number | null;
}

export interface Rollouts {
  run_id: string;
  rollouts: Rollout[];
  more: boolean;
}

export interface Checkpoint {
  step: number;
  completed_at: number;
  bytes: number;
  validation_loss: number | null;
}

export interface Checkpoints {
  run_id: string;
  checkpoints: Checkpoint[];
}

export interface Representation {
  name: string;
  offered: boolean;
  reason: string;
}

export interface Cache {
  hits: number;
  misses: number;
  hit_share: number | null;
  evictions: number;
  used_bytes: number;
  capacity_bytes: number;
  disk_hits: number;
  disk_used_bytes: number;
  disk_capacity_bytes: number;
}

/** What one run has had of a teacher. */
export interface Account {
  run_id: string;
  name: string | null;
  requests: number;
  tokens: number;
  sent_bytes: number;
  compute_seconds: number;
  compute_share: number | null;
  mean_queue_seconds: number | null;
  cache_hits: number;
  hit_share: number | null;
  weight: number | null;
}

export interface Teacher {
  address: string;
  reachable: boolean;
  problem: string | null;
  seen_at: number | null;
  configured: boolean;
  runs: string[];
  warning: string | null;
  model: string | null;
  revision: string | null;
  engine: string | null;
  num_parameters: number | null;
  fingerprint: string | null;
  weights_sha256: string | null;
  device: string | null;
  tensor_parallel: number | null;
  device_utilization: number | null;
  dtype: string | null;
  quantization: string | null;
  mode: string | null;
  representations: Representation[];
  uptime_seconds: number | null;
  measured_tokens_per_second: number | null;
  tokens_per_second: number | null;
  scored_tokens: number | null;
  scored_sequences: number | null;
  sent_bytes: number | null;
  compute_seconds: number | null;
  forwards: number | null;
  padding_share: number | null;
  queued_requests: number | null;
  queued_tokens: number | null;
  running_requests: number | null;
  max_queued_requests: number | null;
  refused_requests: number | null;
  failed_requests: number | null;
  cache: Cache | null;
  accounts: Account[];
  num_accounts: number | null;
}

export interface Teachers {
  teachers: Teacher[];
}

export interface Model {
  path: string;
  problem: string | null;
  architecture: string | null;
  vocab_size: number | null;
  has_weights: boolean;
  has_tokenizer: boolean;
  weights_bytes: number | null;
}

/** Its name in JavaScript is taken. */
export interface TeacherRecord {
  path: string;
  problem: string | null;
  model: string | null;
  fingerprint: string | null;
  holds: string[] | null;
  data_path: string | null;
  seq_len: number | null;
  vocab_size: number | null;
  bytes: number | null;
}

export interface Records {
  records: TeacherRecord[];
}

export interface Models {
  models: Model[];
}

export interface Dataset {
  path: string;
  problem: string | null;
  holds: "text" | "chats" | "prompts" | null;
  document_count: number | null;
  total_tokens: number | null;
  shard_count: number | null;
  vocab_size: number | null;
  seq_length_hint: number | null;
  tokenizer_sha256: string | null;
}

export interface Datasets {
  datasets: Dataset[];
}

export interface Check {
  outcome: "pass" | "warn" | "fail" | "skip";
  subject: string;
  message: string;
  field: string | null;
}

export interface Estimate {
  tokens_per_step: number;
  tokens: number;
  epochs: number | null;
  bytes_per_step: number | null;
  teacher_tokens: number;
  teacher_hours: number | null;
  training_rows: number | null;
  validation_rows: number | null;
  free_disk_bytes: number | null;
}

/** What POST /runs/check found about a spec. */
export interface SpecCheck {
  ok: boolean;
  spec: Record<string, any>;
  checks: Check[];
  estimate: Estimate;
}

export interface Problem {
  type: string;
  title: string;
  status: number;
  detail: string;
  reason: string;
  retryable: boolean;
  errors: FieldProblem[];
}

export interface FieldProblem {
  field: string;
  message: string;
}

/** What POST /runs/prune would delete, or has deleted. */
export interface Pruned {
  runs: PrunedRun[];
  bytes: number;
  deleted: number;
  left_out: Refusal[];
}

export interface Refusal {
  run_id: string;
  detail: string;
}

export interface PrunedRun {
  run_id: string;
  name: string;
  state: RunState;
  since: number;
  disk_bytes: number;
}

export type AlertKind =
  | "failed" | "stalled" | "diverged" | "waiting" | "disk" | "finished";

/** Something that a person should know of. */
export interface Alert {
  seq: number;
  at: number;
  kind: AlertKind;
  run_id: string | null;
  name: string | null;
  state: RunState | null;
  reason: string | null;
  step: number | null;
  message: string;
  attempts: number;
  next_try_at: number | null;
  delivered_at: number | null;
  last_error: string | null;
}

/** Newest first. */
export interface Alerts {
  receiver: string | null;
  alerts: Alert[];
}

/** What came of a message to the webhook. */
export interface AlertTest {
  receiver: string;
  delivered: boolean;
  status: number | null;
  said: string | null;
  error: string | null;
  seconds: number;
}

/** A sweep in the list of sweeps. */
export interface SweepSummary {
  id: string;
  name: string;
  group: string;
  created_at: number;
  metric: string;
  goal: "min" | "max";
  num_runs: number;
  settings: string[];
  states: Record<string, number>;
}

export interface SweepsPage {
  sweeps: SweepSummary[];
  total: number;
  next_cursor: string | null;
}

export interface SweepRun {
  run_id: string;
  name: string;
  state: RunState;
  reason: string | null;
  message: string | null;
  step: number;
  steps: number;
  settings: Record<string, any>;
  value: number | null;
  value_step: number | null;
  best: number | null;
  at_step: number | null;
  note: string | null;
  group: number;
  resumes: boolean;
}

/** Runs of a sweep that differ in their seed only. */
export interface SweepGroup {
  settings: Record<string, any>;
  runs: string[];
  n: number;
  mean: number | null;
  spread: number | null;
  note: string | null;
}

export interface SweepTeacher {
  problem: string | null;
  counted_runs: number | null;
  asked_tokens: number | null;
  computed_tokens: number | null;
  shared: number | null;
  asked_sequences: number | null;
  computed_sequences: number | null;
}

export interface Sweep {
  id: string;
  name: string;
  group: string;
  created_at: number;
  metric: string;
  goal: "min" | "max";
  num_runs: number;
  settings: string[];
  runs: SweepRun[];
  groups: SweepGroup[];
  best: string | null;
  best_group: number | null;
  teacher: SweepTeacher | null;
}

export interface Combination {
  name: string;
  settings: Record<string, any>;
}

export interface SweepEstimate {
  tokens: number;
  teacher_tokens: number;
  teacher_tokens_shared: number;
  teacher_hours: number | null;
  free_disk_bytes: number | null;
}

/** What POST /sweeps/check found. */
export interface SweepCheck {
  ok: boolean;
  runs: Combination[];
  settings: string[];
  checks: Check[];
  estimate: SweepEstimate;
  advice: string[];
}

/** One execution of a stage: an evaluation, an export, a publication or a recording. */
export interface Task {
  id: string;
  run_id: string | null;
  stage: string;
  asked: Record<string, any>;
  by: string | null;
  created_at: number;
  seq: number;
  revision: number;
  state: RunState;
  wanted: Wanted;
  since: number;
  reason: string | null;
  message: string | null;
  field: string | null;
  attempt: number;
  restarts: number;
  resumable: boolean;
  resumes_at: number | null;
  queue_position: number | null;
  slots: string[];
  threads: number | null;
  doing: string | null;
  done: number;
  of: number;
  per_second: number | null;
  eta_seconds: number | null;
  said: string[];
  elapsed_seconds: number;
  heartbeat: number | null;
}

export interface TaskDetail extends Task {
  result: Record<string, any> | null;
  markdown: string | null;
  folder: string;
}

/** Newest first. */
export interface Tasks {
  tasks: Task[];
  next_cursor: string | null;
  revision: number;
}
