-- ARGV: time, result_ttl, then per result: id, attempt, outcome, text. Answers `stored`, `duplicate` or
-- `stale` for each. Who only stores results here sweeps here, too.
-- The first change needs no room: a server whose memory is full takes results, since a job is done, and
-- its room free, once its result is stored.
redis.call('ZREM', key('result_ends'), '')
sweep()
mark_layout()
local ids, attempts, outcomes, texts = {}, {}, {}, {}
for nth = 3, #ARGV, 4 do
  local at = (nth + 1) / 4
  ids[at], attempts[at], outcomes[at], texts[at] = ARGV[nth], tonumber(ARGV[nth + 1]), ARGV[nth + 2], ARGV[nth + 3]
end
local told, stored = answer(results_of(ids, attempts, outcomes, texts), tonumber(ARGV[2]))
tell_answers(stored)
return told
